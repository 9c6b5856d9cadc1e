"""docs/memory.md: every block runs in order, and its table has every method of the package."""

from __future__ import annotations

import re

import steer

from .blocks import ROOT, blocks

PAGE = (ROOT / "docs/memory.md").read_text()
METHODS = {name: info.cls for name, info in steer.methods().items() if info.cls.__module__.startswith("steer_memory.")}


def test_every_block_runs() -> None:
    namespace: dict = {}
    for body in blocks("docs/memory.md", "python"):
        exec(compile(body, "docs/memory.md", "exec"), namespace)
    assert namespace["certificate"]["held_out"]["agreement"] > 0.9
    assert namespace["certificate"]["nbytes"] < 0.5 * namespace["certificate"]["nbytes_whole"]
    right = sum(said == one.answer for said, one in zip(namespace["answers"], namespace["queries"], strict=True))
    assert right >= 22


def test_the_table_has_every_method_with_its_paper() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*?) ?\|$", PAGE, flags=re.MULTILINE))
    assert rows.keys() == METHODS.keys()
    for name, cls in METHODS.items():
        assert cls.paper in rows[name] or (not rows[name] and name == "random"), name
