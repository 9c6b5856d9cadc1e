"""The check that a method survives being saved and loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .._bench import Check, Inputs, equal
from ..errors import FingerprintError
from ..method import Method
from ..model_map import ModelMap
from ..registry import load, methods
from ._case import Case, same_tensors

SUFFIXES = {".safetensors", ".json", ".md"}


def check_saves(method: Method, model: Any, inputs: Inputs, folder: str | Path) -> Check:
    """Check that what is saved and loaded again is equal and does the same, bit for bit.

    What it learned fits one model: loading it for a model of another shape must be refused. Nothing but safetensors,
    JSON and Markdown may be written.

    Args:
        method: one that acts and whose class is registered; a `Learned` one may come without tensors.
        model: in eval mode.
        inputs: for `model(**inputs)`.
        folder: where to, e.g. pytest's `tmp_path`; a folder with the method's name is made in it.

    Returns:
        The check, passed.

    Raises:
        AssertionError: something was lost or is not refused, or the method changed nothing; the message says what.
    """
    return saves(Case(method, model, inputs), folder)


def saves(case: Case, folder: str | Path) -> Check:
    """Saved and loaded again it is the same."""
    target = Path(folder) / case.method.name
    before = case.steered()
    case.check_moved(before)
    case.method.save_pretrained(target)
    _check_files(case.method.name, target)
    loaded = _load_back(case.method, target, case.map)
    if loaded != case.method:
        raise AssertionError(f"{case.method.name}: saved {case.method!r}, loaded {loaded!r}")
    if not same_tensors(loaded.tensors, case.method.tensors):
        raise AssertionError(f"{case.method.name}: saved tensors {_shapes(case.method)}, loaded {_shapes(loaded)}")
    if not equal(case.steered(loaded), before):
        raise AssertionError(
            f"{case.method.name}: loaded again it does something else: is all that it learned in `tensors`?"
        )
    refused = _refuse_another(case.method, target, case.map) if case.method.tensors else ""
    return Check("saves", "", "pass", f"loaded again every bit is the same{refused}")


def _check_files(name: str, folder: Path) -> None:
    others = sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in SUFFIXES)
    if others:
        raise AssertionError(f"{name} wrote {', '.join(others)}; only {', '.join(sorted(SUFFIXES))} are safe to load")


def _load_back(method: Method, folder: Path, model_map: ModelMap) -> Method:
    registered = methods().get(method.name)
    if registered is None or registered.cls is not type(method):
        there = "no method" if registered is None else f"{registered.cls}, not {type(method)},"
        raise AssertionError(
            f"{method.name}: {there} is registered under this name; install the plugin (pip install -e .), or check "
            "inside `with steer.testing.plugged(...)`"
        )
    return load(folder, model_map)


def _refuse_another(method: Method, folder: Path, model_map: ModelMap) -> str:
    """Words that it was refused on a model whose towers are one wider."""
    towers = {name: dataclasses.replace(tower, width=tower.width + 1) for name, tower in model_map.towers.items()}
    try:
        load(folder, dataclasses.replace(model_map, towers=towers))
    except FingerprintError:
        return "; refused on a wider model"
    hint = "" if method.provenance else "; call self.record_provenance(...) at the end of fit"
    raise AssertionError(f"{method.name}: tensors that fit this model were loaded for one of another width{hint}")


def _shapes(method: Method) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in method.tensors.items()}
