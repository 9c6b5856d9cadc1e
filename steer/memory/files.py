"""A memory on disk: a safetensors file that is mapped when loaded, and a JSON file that says what it is of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..errors import FileFormatError, InterventionError
from ..files import _temporary
from ._fits import dtype_of, rope_of, tokenizer_hash, weights_of
from ._helping import _of_models
from ._kept_files import pack_kept, unpack_kept
from ._record import read_record, sealed
from ._states import pack
from ._tensors import check_savable, map_tensors, write_tensors
from .kept import Kept

if TYPE_CHECKING:
    from .memory import Memory

JSON_NAME = "steer_memory.json"
TENSORS_NAME = "steer_memory.safetensors"
FILE_NAMES = (JSON_NAME, TENSORS_NAME)


@dataclass(frozen=True)
class SavedMemory:
    """What one folder holds, for those who have no model at hand.

    Attributes:
        record: the JSON file.
        tensors: by name, on the CPU, mapped from the file.
    """

    record: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)

    def layers(self) -> dict[int, Kept]:
        """What each layer of the text tower kept."""
        return {int(i): self.layer(place) for i, place in self.record["places"].items()}

    def layer(self, place: int, device: Any = "cpu", cast: Mapping[Any, Any] | None = None) -> Kept:
        """What the layer at a place of the cache kept, on a device, with some dtypes changed."""
        batch, length = self.tensors["tokens"].shape
        return unpack_kept(f"layers.{place}", self.tensors, batch, length, device, cast or {})


def save(memory: Memory, folder: str | os.PathLike[str], processor: Any = None) -> None:
    """See `Memory.save`."""
    model = _model_of(memory)
    tensors = {"tokens": memory.tokens, "mask": memory.mask, "images": memory.images}
    if memory.rope_deltas is not None:
        tensors["rope_deltas"] = memory.rope_deltas
    layers = [
        (pack_kept if isinstance(layer, Kept) else pack)(layer, f"layers.{i}", tensors)
        for i, layer in enumerate(memory.layers)
    ]
    check_savable(tensors)
    deltas = 0 if memory.rope_deltas is None else memory.rope_deltas[:, 0].to(memory.mask.device)
    record = {
        "steer_version": __version__,
        "model_class": memory.model_class,
        "fingerprint": dict(memory.fingerprint),
        "dtype": dtype_of(model),
        "rope": rope_of(model),
        "weights": weights_of(model),
        "tokenizer": None if processor is None else tokenizer_hash(processor),
        "length": memory.length,
        "next_position": (memory.mask.sum(-1) + deltas).tolist(),
        "places": {str(i): place for i, place in memory.places.items()},
        "layers": layers,
        "shapes": {name: list(shape) for name, shape in memory.shapes.items()},
        "info": dict(memory.info),
    }
    sealed(record)  # before anything is written: the only thing that can still fail is the disk
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # Both are whole on disk before the first is renamed; a pair of two saves has digests that disagree.
    with ExitStack() as stack:
        written = stack.enter_context(_temporary(target, TENSORS_NAME, b""))
        with open(written, "r+b") as stream:
            record["tensors"] = write_tensors(stream, tensors)
        beside = stack.enter_context(_temporary(target, JSON_NAME, sealed(record)))
        os.replace(written, target / TENSORS_NAME)
        os.replace(beside, target / JSON_NAME)


def read(folder: str | os.PathLike[str]) -> SavedMemory:
    """Read and check the two files of a saved memory. Nothing in them is executed, imported or unpickled.

    Raises:
        FileFormatError: one is missing, truncated, damaged, hostile, or does not belong to the other.
    """
    record = read_record(Path(folder) / JSON_NAME)
    saved = SavedMemory(record, map_tensors(Path(folder) / TENSORS_NAME, record["tensors"]))
    try:
        _check(saved)
        saved.layers()
    except FileFormatError as error:
        raise FileFormatError(f"{Path(folder) / JSON_NAME} does not describe a memory: {error}") from error
    return saved


def _check(saved: SavedMemory) -> None:
    """That lengths, places and the small tensors agree with one another."""
    record, tensors = saved.record, saved.tensors
    tokens, mask, images, deltas = (tensors.get(name) for name in ("tokens", "mask", "images", "rope_deltas"))
    if tokens is None or tokens.ndim != 2 or tokens.dtype != torch.int64 or tokens.shape[1] != record["length"]:
        raise FileFormatError(f"its tokens are not whole numbers (B, {record['length']})")
    if any(t is None or t.shape != tokens.shape or t.dtype != torch.bool for t in (mask, images)):
        raise FileFormatError("its mask and images are not bool like its tokens")
    if deltas is not None and (deltas.shape != (tokens.shape[0], 1) or deltas.is_floating_point()):
        raise FileFormatError("its rope_deltas are not whole numbers (B, 1)")
    layers, places = record["layers"], record["places"]
    if not all(isinstance(layer, dict) and isinstance(layer.get("class"), str) for layer in layers):
        raise FileFormatError("its layers are not objects with a class")
    pruned = [i for i, layer in enumerate(layers) if layer["class"] == Kept.__name__]
    if not all(i.isdecimal() and len(i) < 6 for i in places) or sorted(places.values(), key=str) != sorted(
        pruned, key=str
    ):
        raise FileFormatError("its places are not those of the layers that kept some tokens")
    for shape in record["shapes"].values():
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise FileFormatError("its shapes are not lists of whole numbers")


def _model_of(memory: Memory) -> Any:
    """The model that a memory is bound to."""
    helper = memory._bound.get("helper")
    found = [model for model, masks in _of_models.items() if masks is helper]
    if helper is None or not found:
        raise InterventionError("a memory is saved while it is on its model: memory.bind(model).save(folder)")
    return found[0]
