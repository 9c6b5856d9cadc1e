"""Methods inside a method: their configurations as plain data, their tensors under prefixed names, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ._config import encode_config
from .errors import FileFormatError, SteerError
from .files import SavedMethod
from .method import Method
from .registry import method_class, source_of

__all__ = ["pack", "unpack"]

PREFIX = "inner"
MAX_DEPTH = 60
"""Of lists and objects in each other: a dozen methods around each other. More is no method that anyone fitted."""


def pack(methods: Sequence[Method]) -> tuple[tuple[dict[str, Any], ...], dict[str, torch.Tensor]]:
    """What a method keeps of the methods it wraps.

    Args:
        methods: fitted ones, of installed plugins.

    Returns:
        For each, plain JSON-able data: method, config, provenance, plugin, and a digest of the tensors as they are now,
        so that methods around different ones are not equal; and all their tensors, as `inner.0.<name>` and so on.

    Raises:
        SteerError: something is not a method of an installed plugin, or was never fitted although it has to be.
        InterventionError: a configuration that JSON cannot hold.
    """
    data: list[dict[str, Any]] = []
    tensors: dict[str, torch.Tensor] = {}
    for index, method in enumerate(methods):
        if not isinstance(method, Method):
            raise SteerError(f"only methods can be wrapped (from steer.create or steer.load), got {method!r:.80}")
        source = source_of(type(method))
        if source is None:
            raise SteerError(f"method {method.name!r} comes from no installed plugin; it could not be loaded again")
        described = {
            "method": method.name,
            "config": encode_config(method),
            "provenance": method.provenance,
            "plugin": {"distribution": source.distribution, "version": source.version},
            "wrapped_sha256": _digest(method.tensors),
        }
        # Through JSON, so that what is kept equals what a file gives back.
        data.append(json.loads(json.dumps(described)))
        tensors |= {f"{PREFIX}.{index}.{name}": tensor for name, tensor in method.tensors.items()}
    return tuple(data), tensors


def unpack(data: Sequence[Any], tensors: Mapping[str, torch.Tensor]) -> list[Method]:
    """The methods that `pack` described.

    Args:
        data: as `pack` gave it.
        tensors: by `pack`'s names, among others; an inner method shares them.

    Raises:
        FileFormatError: the data is not what `pack` gives, or is nested without end.
        UnknownNameError: a method or a configuration field that is not installed.
    """
    _check_depth(data)
    methods = []
    for index, one in enumerate(data):
        plugin = _part(one, index, "plugin", dict)
        cls = method_class(_part(one, index, "method", str), plugin.get("distribution"))
        prefix = f"{PREFIX}.{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        config, provenance = (_part(one, index, key, dict) for key in ("config", "provenance"))
        methods.append(cls._from_saved(SavedMethod(cls.name, config, own, provenance, plugin)))
    return methods


def _part(one: Any, index: int, key: str, kind: type) -> Any:
    value = one.get(key) if isinstance(one, Mapping) else None
    if not isinstance(value, kind):
        raise FileFormatError(f"wrapped method {index} must hold {key!r} as {kind.__name__}, got {value!r:.60}")
    return value


def _check_depth(data: Sequence[Any]) -> None:
    level: list[Any] = [data]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise FileFormatError(f"wrapped methods are nested more than {MAX_DEPTH} lists and objects deep")
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, Mapping) else one)
            if isinstance(item, Mapping | list | tuple)
        ]


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, list(tensor.shape), str(tensor.dtype))).encode())
        # A tensor of one number may have stride 0 and count as contiguous; bytes need strides of 1.
        flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
