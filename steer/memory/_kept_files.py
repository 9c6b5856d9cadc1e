"""`Kept` as tensors of a file and back; what is read is checked, so that no index reaches past its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import FileFormatError
from ._states import moved
from .kept import Kept

PARTS = ("keys", "values", "slots", "index", "valid")


def pack_kept(kept: Kept, prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Put a layer's tensors into `tensors`; indices as int32, half of what they take in memory."""
    for part in PARTS:
        value = getattr(kept, part)
        if value is not None:
            tensors[f"{prefix}.{part}"] = value.to(torch.int32) if value.dtype == torch.int64 else value
    return {"class": Kept.__name__, "counts": kept.counts().tolist()}


def unpack_kept(
    prefix: str, tensors: Mapping[str, torch.Tensor], batch: int, length: int, device: Any, cast: Mapping[Any, Any]
) -> Kept:
    """A layer from the file's tensors.

    Args:
        prefix: of the tensors' names.
        tensors: the file's.
        batch: rows of the memory.
        length: tokens that it has read.
        device: where the layer lives.
        cast: dtypes to be changed.

    Raises:
        FileFormatError: they do not belong together.
    """
    parts = {part: tensors.get(f"{prefix}.{part}") for part in PARTS}
    _check(parts, batch, length)
    keys, values = (moved(parts[part], device, cast) for part in ("keys", "values"))  # type: ignore[arg-type]
    slots, index = (None if parts[part] is None else parts[part].to(device, torch.int64) for part in ("slots", "index"))  # type: ignore[union-attr]
    valid = None if parts["valid"] is None else parts["valid"].to(device)
    assert slots is not None
    return Kept(keys, values, slots, index, valid)


def _check(parts: Mapping[str, torch.Tensor | None], batch: int, length: int) -> None:
    keys, values, slots, index, valid = (parts[part] for part in PARTS)
    if keys is None or values is None or slots is None:
        raise FileFormatError("it lacks keys, values or slots")
    flat = index is not None
    if keys.ndim != (2 if flat else 4) or keys.shape[:-1] != values.shape[:-1] or not keys.is_floating_point():
        raise FileFormatError(f"its keys {list(keys.shape)} and values {list(values.shape)} do not belong together")
    shape = index.shape if index is not None else keys.shape[:3]
    if len(shape) != 3 or shape[0] != batch or keys.dtype != values.dtype:
        raise FileFormatError(f"it is of {list(shape)} rows, heads and columns, in a memory of {batch} rows")
    if index is not None and not (_whole(index) and _within(index, keys.shape[0])):
        raise FileFormatError("its index reaches past its keys")
    if valid is not None and (valid.shape != shape or valid.dtype != torch.bool or not bool(valid.any(-1).all())):
        raise FileFormatError("`valid` does not fit its keys")
    fits = slots.ndim == 3 and slots.shape[0] in (1, batch) and slots.shape[1] in (1, shape[1])
    if not fits or slots.shape[2] != shape[2] or not _whole(slots) or not _within(slots, length):
        raise FileFormatError(f"its slots do not fit its keys or a sequence of {length} tokens")
    rising = slots[..., 1:] > slots[..., :-1]
    if not bool((rising if valid is None else rising | ~valid[..., 1:]).all()):
        raise FileFormatError("its slots do not ascend")


def _whole(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.int32, torch.int64)


def _within(tensor: torch.Tensor, end: int) -> bool:
    return not tensor.numel() or (int(tensor.min()) >= 0 and int(tensor.max()) < end)
