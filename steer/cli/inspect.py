"""`steer inspect`: the map of a model, without its weights."""

from __future__ import annotations

from ._model import ModelArgument
from ._output import AsJson, print_json, quiet_in_a_pipe


def command(model: ModelArgument, json: AsJson = False) -> None:
    """Show a model's towers, layers and heads, of any size.

    MODEL may also be a config.json. Nothing is loaded: the model is built on the meta device.
    """
    from .. import zoo
    from .._inspecting import inspect

    quiet_in_a_pipe()
    model_map = inspect(zoo.load(model)[0] if model in zoo.names() else model)
    if json:
        print_json(model_map.to_dict())
    else:
        print(model_map)
