"""The JSON file of a memory: written with a digest of itself, read with every field's kind checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FileFormatError, InterventionError
from ..files import MAX_JSON_BYTES, _digest, _no_constant, _no_duplicates

FORMAT = "steer-memory"
FORMAT_VERSION = 1
FIELDS: dict[str, type | tuple[type, ...]] = {
    "steer_version": str,
    "model_class": str,
    "fingerprint": dict,
    "dtype": str,
    "rope": dict,
    "weights": (str, type(None)),
    "tokenizer": (str, type(None)),
    "length": int,
    "next_position": list,
    "places": dict,
    "layers": list,
    "shapes": dict,
    "info": dict,
    "tensors": dict,
    "sha256": str,
}
_WORDS = {str: "a string", dict: "an object", int: "a whole number", list: "a list", type(None): "null"}


def sealed(record: Mapping[str, Any]) -> bytes:
    """The file's bytes.

    Raises:
        InterventionError: it holds something that JSON does not; `info` is what a method can put there.
    """
    try:
        # once through JSON first: its keys are strings, and the digest must be of what will be read
        plain = json.loads(json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **record}, allow_nan=False))
        return json.dumps({**plain, "sha256": _digest(plain)}, indent=2, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        raise InterventionError(f"this memory's `info` cannot be saved as JSON: {error}") from error


def read_record(path: Path) -> dict[str, Any]:
    """The JSON file, checked.

    Raises:
        FileFormatError: it is missing, damaged, edited, hostile, or of another format.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise FileFormatError(f"{path} has {size} bytes; a memory's JSON has at most {MAX_JSON_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise FileFormatError(
            f"{path} cannot be read: {error.strerror}; a saved memory is a folder with it and its .safetensors file"
        ) from error
    try:
        record = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}") from error
    return _checked(record, path)


def _checked(record: Any, path: Path) -> dict[str, Any]:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FileFormatError(f'{path} is not a saved steer memory: it has no "format": "{FORMAT}"')
    if record.get("format_version") != FORMAT_VERSION:
        version = f"{record.get('format_version')!r:.50}"
        raise FileFormatError(f"{path} has format version {version}; this steer reads {FORMAT_VERSION}; update steer")
    for key, kind in FIELDS.items():
        _demand(record, key, kind, path)
    for key, kind in (("sha256", str), ("bytes", int), ("entries", dict)):
        _demand(record["tensors"], key, kind, path)
    if record.pop("sha256") != _digest(record):
        raise FileFormatError(f"{path} is damaged or was edited: its sha256 is not the one recorded")
    return record


def _demand(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], path: Path) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # the exact type: a bool is an int to Python
    if type(record.get(key)) not in kinds or (key not in record):
        raise FileFormatError(f"{path} must hold {key!r} as {' or '.join(_WORDS[one] for one in kinds)}")
