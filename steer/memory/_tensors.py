"""Tensors in a safetensors file: written one at a time as they are hashed, read as a map of the file."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from ..errors import FileFormatError, InterventionError
from ..files import _entry, _finite, _first_difference

# The format's own names, https://huggingface.co/docs/safetensors.
DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
BLOCK = 2**22


def check_savable(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises InterventionError for a tensor that a file cannot hold, or that would not be read again."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
            raise InterventionError(f"{name} has no plain storage that can be saved: {tensor.dtype}, {tensor.layout}")
        if not all_finite(tensor):
            raise InterventionError(f"{name} holds NaN or infinity; a file with it would not load")


def write_tensors(stream: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write a safetensors file; only one tensor at a time is copied, and only where it is not plain CPU memory.

    Returns:
        What the JSON file says of it: `sha256`, `bytes`, and `entries`: shape and dtype by name.
    """
    # widest first, as the format's own library does, so that every tensor is aligned to its elements
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        dtype, shape = DTYPES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    for part in (struct.pack("<Q", len(text)), text):
        stream.write(part)
        digest.update(part)
    for name in order:
        plain = tensors[name].detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        stream.write(plain.data)
        digest.update(plain.data)
    stream.flush()
    os.fsync(stream.fileno())
    entries = {name: _entry(tensors[name]) for name in sorted(tensors)}
    return {"sha256": digest.hexdigest(), "bytes": 8 + len(text) + end, "entries": entries}


def map_tensors(path: Path, declared: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a file, on the CPU: a private map of it, read from the disk where they are looked at.

    Raises:
        FileFormatError: the file is missing, truncated, damaged, hostile, or not the declared one.
    """
    try:
        if (size := path.stat().st_size) != declared["bytes"]:
            raise FileFormatError(f"{path} has {size} bytes, not {declared['bytes']}: truncated or replaced")
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror}") from error
    if digest != declared["sha256"]:
        raise FileFormatError(f"{path} is damaged or belongs to another memory: its sha256 differs; save both again")
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    # The parser raises its own error for a bad header and plain ones for a dtype this torch does not know.
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, OSError) as error:
        raise FileFormatError(f"{path} is not a safetensors file: {error}") from error
    found = {name: _entry(tensor) for name, tensor in tensors.items()}
    if found != declared["entries"]:
        raise FileFormatError(f"{path} does not hold what was saved: {_first_difference(declared['entries'], found)}")
    for name, tensor in tensors.items():
        if not all_finite(tensor):
            raise FileFormatError(f"tensor {name!r:.80} of {path} holds NaN or infinity")
    return tensors


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity, looked at in blocks so that no second copy is made."""
    return not tensor.is_floating_point() or all(_finite(block) for block in tensor.reshape(-1).split(BLOCK))
