"""`steer inspect`: the map of a model, without its weights."""

from __future__ import annotations

from typing import Annotated

import typer

from .._inspecting import inspect
from ._output import AsJson, print_json, quiet_in_a_pipe


def command(
    model: Annotated[str, typer.Argument(help="Zoo name, hub id, folder or config.json.")],
    json: AsJson = False,
) -> None:
    """Show a model's towers, layers and heads; built on the meta device, so any size will do."""
    from .. import zoo

    quiet_in_a_pipe()
    model_map = inspect(zoo.load(model)[0] if model in zoo.names() else model)
    if json:
        print_json(model_map.to_dict())
    else:
        print(model_map)
