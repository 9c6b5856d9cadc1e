"""`steer methods`: what is installed."""

from __future__ import annotations

from ._known import keep
from ._output import AsJson, print_json, print_table


def command(json: AsJson = False) -> None:
    """List the methods of every installed plugin."""
    from ..registry import methods

    found = methods()
    keep(found)
    if json:
        print_json([info.to_dict() for info in found.values()])
        return
    rows = [(info.name, info.summary, f"{info.distribution} {info.version}", info.paper) for info in found.values()]
    print_table(("method", "what it does", "from", "paper"), rows)
