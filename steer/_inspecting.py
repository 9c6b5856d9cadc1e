"""`steer.inspect`: ask the plugins, then the general rule; a name or a config is built on the meta device first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from ._plugins import manager
from .errors import PluginError
from .model_map import ModelMap

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def inspect(target: torch.nn.Module | PretrainedConfig | str | os.PathLike[str]) -> ModelMap:
    """Map a model: its towers, layers, attention and heads. Runs no weights; works on the meta device.

    Args:
        target: a model on any device; or a config, a hub id, a folder or a config.json, from which an empty model is
            built on the meta device.

    Returns:
        The map; print it for a tree, `.to_dict()` for JSON.

    Raises:
        MappingError: no tower was found, or the name does not lead to a model.
    """
    if not isinstance(target, torch.nn.Module):
        from ._loading import meta_model

        target = meta_model(target)
    told = manager().hook.steer_inspect_model(model=target)
    if told is None:
        from ._inspect import inspect_model

        return inspect_model(target)
    if not isinstance(told, ModelMap):
        raise PluginError(f"a plugin's steer_inspect_model returned {type(told).__name__}, not ModelMap or None")
    return told
