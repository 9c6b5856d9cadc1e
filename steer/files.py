"""A saved method on disk: one JSON file, one safetensors file and a model card, bound together by digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from .errors import FileFormatError, InterventionError, SteerError

JSON_NAME = "steer_method.json"
TENSORS_NAME = "steer_method.safetensors"
CARD_NAME = "README.md"
FILE_NAMES = (JSON_NAME, TENSORS_NAME, CARD_NAME)

FORMAT = "steer-method"
FORMAT_VERSION = 1
# The JSON holds a configuration and a fingerprint: a few hundred bytes a layer. More than this is not ours.
MAX_JSON_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SavedMethod:
    """What one folder holds.

    Attributes:
        method: the method's registered name.
        config: its configuration, plain JSON data.
        tensors: learned state by name, on the CPU.
        provenance: fingerprint of the model, seed and data it was fitted on, version of steer.
        plugin: distribution and version that the method came from.
    """

    method: str
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    plugin: Mapping[str, Any] = field(default_factory=dict)


def write_folder(folder: str | os.PathLike[str], saved: SavedMethod, card: str) -> None:
    """Write the three files; each appears under its name only when complete.

    Raises:
        InterventionError: a tensor or a value that cannot be saved; the message names it. Nothing is written then.
    """
    payload = save_safetensors({name: _savable(name, tensor) for name, tensor in saved.tensors.items()})
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "method": saved.method,
        "plugin": dict(saved.plugin),
        "config": dict(saved.config),
        "provenance": dict(saved.provenance),
        "tensors": {
            "sha256": hashlib.sha256(payload).hexdigest(),
            "bytes": len(payload),
            "entries": {name: _entry(tensor) for name, tensor in sorted(saved.tensors.items())},
        },
    }
    try:
        record["sha256"] = _digest(record)
        text = json.dumps(record, indent=2, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InterventionError(f"method {saved.method!r} cannot be saved as JSON: {error}") from error
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # All three are complete on disk before the first is renamed: an interrupted save leaves the old files, and one
    # interrupted between the renames leaves a pair whose digests disagree, which loading reports.
    with contextlib.ExitStack() as stack:
        contents = {TENSORS_NAME: payload, JSON_NAME: text.encode(), CARD_NAME: card.encode()}
        written = {name: stack.enter_context(_temporary(target, name, data)) for name, data in contents.items()}
        for name, temporary in written.items():
            os.replace(temporary, target / name)


def in_a_folder(path: str | os.PathLike[str]) -> Path:
    """An absolute path of a file in a folder that exists.

    Raises:
        SteerError: there is no such folder, or the path is one.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise SteerError(f"{target} is a folder; give the name of the file to write")
    if not target.parent.is_dir():
        raise SteerError(f"there is no folder {target.parent} to write {target.name} into")
    if not os.access(target.parent, os.W_OK):
        raise SteerError(f"{target.parent} cannot be written to, so {target.name} cannot be saved there")
    return target


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or, whatever happens, as it was before."""
    with _temporary(path.parent, path.name, data) as temporary:
        os.replace(temporary, path)


def read_folder(folder: str | os.PathLike[str]) -> SavedMethod:
    """Read and check the two files of a saved method. Nothing in them is executed or imported.

    Raises:
        FileFormatError: one is missing, truncated, damaged, hostile, or does not belong to the other.
    """
    source = Path(folder)
    record = _read_json(source / JSON_NAME)
    declared = record["tensors"]
    payload = _read_bytes(source / TENSORS_NAME, declared["bytes"])
    if hashlib.sha256(payload).hexdigest() != declared["sha256"]:
        raise FileFormatError(
            f"{source / TENSORS_NAME} is damaged or is not the one {JSON_NAME} was written with: its sha256 differs; "
            "download or save both again"
        )
    try:
        tensors = load_safetensors(payload)
    # The parser raises its own error for a bad header and plain ones for a dtype this torch does not know.
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise FileFormatError(f"{source / TENSORS_NAME} is not a safetensors file: {error}") from error
    found = {name: _entry(tensor) for name, tensor in tensors.items()}
    if found != declared["entries"]:
        raise FileFormatError(
            f"{source / TENSORS_NAME} does not hold what {JSON_NAME} lists: "
            f"{_first_difference(declared['entries'], found)}"
        )
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise FileFormatError(f"tensor {name!r:.80} of {source / TENSORS_NAME} holds NaN or infinity")
    return SavedMethod(record["method"], record["config"], tensors, record["provenance"], record["plugin"])


def _read_json(path: Path) -> dict[str, Any]:
    data = _read_bytes(path, None)
    try:
        record = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FileFormatError(f'{path} is not a saved steer method: it has no "format": "{FORMAT}"')
    if record.get("format_version") != FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {record.get('format_version')!r:.50}; this steer reads {FORMAT_VERSION}; "
            "update steer-vlm"
        )
    kinds: dict[str, type] = {
        "method": str,
        "plugin": dict,
        "config": dict,
        "provenance": dict,
        "tensors": dict,
        "sha256": str,
    }
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise FileFormatError(f"{path} must hold {key!r} as {_JSON_WORDS[kind]}")
    tensors = record["tensors"]
    inner: dict[str, type] = {"sha256": str, "bytes": int, "entries": dict}
    for key, kind in inner.items():
        if type(tensors.get(key)) is not kind:
            raise FileFormatError(f"{path} must hold 'tensors.{key}' as {_JSON_WORDS[kind]}")
    if record.pop("sha256") != _digest(record):
        raise FileFormatError(
            f"{path} is damaged or was edited: its sha256 is not the one recorded; "
            "to change a method, load it, change it and save it"
        )
    return record


_JSON_WORDS = {str: "a string", dict: "an object", int: "a whole number"}


def _read_bytes(path: Path, expected: int | None) -> bytes:
    try:
        size = path.stat().st_size
        if expected is not None and size != expected:
            raise FileFormatError(f"{path} has {size} bytes where {JSON_NAME} says {expected}: truncated or replaced")
        if expected is None and size > MAX_JSON_BYTES:
            raise FileFormatError(f"{path} has {size} bytes; a saved method's JSON has at most {MAX_JSON_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"{path} cannot be read: {error.strerror}; a saved method is a folder with {JSON_NAME} and {TENSORS_NAME}"
        ) from error


@contextlib.contextmanager
def _temporary(folder: Path, name: str, data: bytes) -> Iterator[str]:
    """A complete file beside its final name, flushed to disk; removed unless it was renamed."""
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only the owner can read, which a shared folder's other users would find missing.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _savable(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise InterventionError(f"tensors[{name!r}] is a {type(tensor).__name__}, not a tensor")
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        raise InterventionError(f"tensors[{name!r}] has no plain storage (meta, sparse or quantised)")
    if not _finite(tensor):
        raise InterventionError(f"tensors[{name!r}] holds NaN or infinity; a file with it would not load")
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _finite(tensor: torch.Tensor) -> bool:
    # isfinite is not written for the 8-bit floats.
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def _entry(tensor: torch.Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _digest(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _first_difference(declared: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Of two mappings that are not equal; a null that is listed is not a tensor that is missing."""
    names = sorted({*declared, *found})
    name = next(n for n in names if (n in declared, declared.get(n)) != (n in found, found.get(n)))
    listed, stored = declared.get(name, "nothing"), found.get(name, "nothing")
    return f"tensor {name!r:.80} is listed as {listed!r:.80} and stored as {stored!r:.80}"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")
