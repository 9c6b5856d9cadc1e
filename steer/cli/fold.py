"""`steer fold`: a saved method as biases of an ordinary checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SteerError
from ._asking import SAVED, method_option
from ._model import Device, Dtype, ModelName, load
from ._output import AsJson, check_file, check_folder, out_option, print_json, quiet_in_a_pipe


def command(
    model: ModelName,
    method: Annotated[list[str], method_option(f"{SAVED}; repeatable")],
    out: Annotated[Path, out_option("the checkpoint")],
    force: Annotated[bool, typer.Option("--force", help="Replace what is in that folder.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    json: AsJson = False,
) -> None:
    """Write a method into a checkpoint that needs no steer."""
    from .._folding import fold
    from ..registry import load as load_method

    quiet_in_a_pipe()
    _check(out, force)
    loaded, processor = load(model, device, dtype)
    folded = fold(loaded, *(load_method(path, loaded) for path in method))
    _write(out, lambda folder: folded.save_pretrained(folder, processor))
    if json:
        print_json(
            {
                "model": model,
                "methods": method,
                "out": str(out),
                "biases": list(folded.biases),
                "switches": dict(folded.switches),
                "difference": folded.difference,
                "effect": folded.effect,
            }
        )
        return
    switches = ", ".join(f"{name}={value}" for name, value in folded.switches.items()) or "none"
    print(f"{out}: shifts in {len(folded.biases)} biases; fields of the config that were changed: {switches}")
    print(f"outputs differ from the session's by {folded.difference:.1e}; the shifts move them by {folded.effect:.1e}")


def _check(out: Path, force: bool) -> None:
    check_folder(out, "the checkpoint")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise SteerError(f"{out} is not empty; choose another folder, or --force to replace what is in it")
    if not out.exists():
        check_file(out)


def _write(out: Path, save: Callable[[Path], None]) -> None:
    """Save into a folder beside the wanted one, then rename: what is at `out` is whole, new or old."""
    out = out.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as beside:
        made, old = Path(beside) / "new", Path(beside) / "old"
        save(made)
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(made, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)
