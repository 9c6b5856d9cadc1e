"""Where labelled pictures come from: class folders, tables, the zoo's picture sets, data sets of Hugging Face."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SteerError, unknown_name
from ._data import ZOO, Role

# What a split for some purpose may be called, the likeliest first.
NAMES: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training"),
    "dev": ("dev", "val", "validation", "valid"),
    "test": ("test", "testing"),
}
TABLES = (".csv", ".tsv", ".jsonl")
# `--read key=value`: the arguments of `steer.data.read_labelled`; for the zoo's sets, of `zoo.labelled`.
OF_FILES: dict[str, Any] = {"image": str, "label": str, "split": str, "root": str, "names": str}
OF_ZOO: dict[str, Any] = {"split": str, "style": str, "per_class": int}
# What `datasets` leaves in a folder that it saved to.
_SAVED = ("dataset_info.json", "dataset_dict.json")


def located(source: str, role: Role, given: Mapping[str, Any], seed: int) -> tuple[Any, dict[str, Any]]:
    """A source as `steer.data.read_labelled` takes it, and the arguments to read it with.

    Args:
        source: a folder, a table, `zoo:SET`, a folder that `datasets` saved to, or a data set's hub id.
        role: what the pictures are for: of several splits, the one of this name.
        given: what the user said about reading.
        seed: of the zoo's pictures.

    Raises:
        SteerError: there is nothing there, or no telling which split.
    """
    if source.startswith(ZOO):
        return _zoo(source.removeprefix(ZOO), role, given, seed), {}
    how = {key: value for key, value in given.items() if key != "names"}
    if "names" in given:
        how["names"] = json_file(given["names"], "--read names")
    path = Path(source)
    if path.is_dir() and any((path / name).is_file() for name in _SAVED):
        return _part(_from("load_from_disk", source), source, role, how)
    if path.is_dir():
        return _folder(path, role, how)
    if path.is_file() or path.suffix in TABLES or source.count("/") != 1 or source.startswith((".", "~", "/")):
        return path, how
    return _part(_from("load_dataset", source), source, role, how)


def json_file(name: str | Path, option: str) -> Any:
    """What a JSON file holds.

    Raises:
        SteerError: it cannot be read; the message has the option that it was given to.
    """
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise SteerError(f"{option}: cannot read {name}: {error.strerror}") from error
    except ValueError as error:
        raise SteerError(f"{option}: {name} is not JSON: {error}") from error


def _zoo(name: str, role: Role, given: Mapping[str, Any], seed: int) -> Any:
    from .. import zoo

    if name not in zoo.picture_sets():
        raise unknown_name("picture set of the zoo", name, zoo.picture_sets(), f"as in {ZOO}food")
    split = {"train": "train", "dev": "val", "test": "test"}[role]
    try:
        return zoo.labelled(name, **{"split": split, **given}, seed=seed)
    except ValueError as error:
        raise SteerError(str(error)) from error


def _folder(path: Path, role: Role, how: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The folder itself, or the split or table in it that is named for the role."""
    if "split" not in how:
        for name in NAMES[role]:
            # A class holds pictures; what holds folders is a split.
            if (path / name).is_dir() and any(one.is_dir() for one in (path / name).iterdir()):
                return path, {**how, "split": name}
            for suffix in TABLES:
                if (path / f"{name}{suffix}").is_file():
                    return path / f"{name}{suffix}", how
    return path, how


def _part(found: Any, source: str, role: Role, how: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """One part of a data set."""
    if not isinstance(found, Mapping) or "split" in how or len(found) == 1:
        return found, how
    for name in NAMES[role]:
        if name in found:
            return found, {**how, "split": name}
    parts = ", ".join(map(str, found))
    raise SteerError(
        f"{source} has the splits {parts} and no {role}; say which, as in --read split={next(iter(found))}"
    )


def _from(function: str, name: str) -> Any:
    try:
        return getattr(_datasets(name), function)(name)
    # Whatever `datasets`, the hub or the network makes of what does not exist or is damaged.
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SteerError(f"there is no folder, table or data set of the hub {name!r}: {reason}") from error


def _datasets(name: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise SteerError(
            f"{name} is no folder of class folders and no table; to read a data set of Hugging Face, "
            "install its library: pip install datasets"
        ) from error
