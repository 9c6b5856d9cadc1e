"""A layer of transformers' cache that cannot be pruned, as tensors and plain values, and back."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import FileFormatError, FingerprintError, InterventionError


def pack(layer: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Every attribute of a layer as JSON; its tensors go into `tensors` under names that begin with `prefix`.

    Raises:
        InterventionError: the layer holds something that is neither a tensor nor a plain value.
    """
    made = {name: _pack(value, f"{prefix}.{name}", tensors) for name, value in vars(layer).items()}
    return {"class": type(layer).__name__, "state": made}


def _pack(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        tensors[where] = value
        return {"tensor": where}
    if isinstance(value, dict):
        return {"by_index": {str(key): _pack(item, f"{where}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, torch.device):
        return {"device": True}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return {"value": value}
    raise InterventionError(f"{where} holds a {type(value).__name__}, which cannot be saved")


def unpack(
    layer: Any, data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: Any, cast: Mapping[Any, Any]
) -> Any:
    """Give a layer that the model made, and that has read nothing, the state that was saved.

    Args:
        layer: of a fresh cache.
        data: what `pack` made.
        tensors: the file's.
        device: where the layer lives.
        cast: dtypes to be changed.

    Raises:
        FingerprintError: the layer that was saved is of another kind.
        FileFormatError: the state is not one that such a layer can have.
    """
    kind, state = type(layer), data.get("state")
    if data.get("class") != kind.__name__:
        raise FingerprintError(f"it was saved as {data.get('class')!r:.60}, and this model makes a {kind.__name__}")
    if not isinstance(state, dict):
        raise FileFormatError("it has no state")
    made = {}
    for name, value in state.items():
        # data only: no method of the class is hidden by what a file says
        if not name.isidentifier() or name.startswith("__") or callable(getattr(kind, name, None)):
            raise FileFormatError(f"{name!r:.60} is no state of a {kind.__name__}")
        made[name] = _unpack(value, tensors, device, cast)
    fixed = inspect.signature(kind.__init__).parameters
    for name in {*vars(layer), *made}:
        if name not in made:
            raise FileFormatError(f"the state of its {kind.__name__} lacks {name!r}")
        if name in fixed and made[name] != getattr(layer, name, None):
            raise FingerprintError(f"it had {name} {made[name]!r:.60}, and this model has {getattr(layer, name, None)}")
    vars(layer).update(made)
    return layer


def _unpack(data: Any, tensors: Mapping[str, torch.Tensor], device: Any, cast: Mapping[Any, Any]) -> Any:
    match data:
        case {"tensor": str(name)} if name in tensors:
            return moved(tensors[name], device, cast)
        case {"by_index": dict(items)}:
            return {_index(key): _unpack(item, tensors, device, cast) for key, item in items.items()}
        case {"device": True}:
            return torch.device(device)
        case {"dtype": str(name)} if isinstance(getattr(torch, name, None), torch.dtype):
            dtype = getattr(torch, name)
            return cast.get(dtype, dtype)
        case {"value": None | bool() | int() | float() | str()}:
            return data["value"]
    raise FileFormatError(f"a state of its cannot be read: {data!r:.80}")


def _index(key: str) -> int:
    if not key.isdecimal() or len(key) > 9:
        raise FileFormatError(f"{key!r:.60} is no index of a state")
    return int(key)


def moved(tensor: torch.Tensor, device: Any, cast: Mapping[Any, Any]) -> torch.Tensor:
    """A tensor where its layer lives; the same, and still a map of the file, where nothing has to be done."""
    return tensor.to(device, cast.get(tensor.dtype, tensor.dtype))
