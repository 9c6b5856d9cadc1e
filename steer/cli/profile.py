"""`steer profile`: what each head does, as a file, a picture, a page and a table."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SteerError
from ._data import examples
from ._model import Device, Dtype, load
from ._output import AsJson, print_json, print_table, quiet_in_a_pipe
from .fit import _resumable

if TYPE_CHECKING:
    from ..profiling import HeadMap


def command(
    model: Annotated[str, typer.Argument(help="Zoo name, folder or hub id of a model that writes text.")],
    data: Annotated[
        str,
        typer.Option(help="What is asked: a folder (its train.jsonl, or its only file), a .jsonl file or zoo:TASK."),
    ],
    out: Annotated[Path, typer.Option("--out", "--output", help="The file to save the profile in, a .safetensors.")],
    measure: Annotated[
        str, typer.Option(help="indirect_effect, ablation, attention; several with commas between.")
    ] = "indirect_effect",
    shots: Annotated[int, typer.Option(min=0, help="Demonstrations in a prompt.")] = 4,
    pool: Annotated[str | None, typer.Option(help="Where these come from: as --data, which is the default.")] = None,
    corrupt: Annotated[
        str, typer.Option(help="How demonstrations are made to say nothing: shuffle their answers, or remove them.")
    ] = "shuffle",
    gradient: Annotated[
        bool, typer.Option("--gradient", help="Estimate effects to first order, for all heads at once.")
    ] = False,
    scale: Annotated[
        str | None,
        typer.Option(help="probability or log_probability; by default the first, and the second for ablation."),
    ] = None,
    attention: Annotated[str, typer.Option(help="Whose heads: self or cross.")] = "self",
    samples: Annotated[int, typer.Option(min=1, help="How many examples are asked, at most.")] = 100,
    template: Annotated[
        str | None, typer.Option(help="How an example is written, if not by the processor's chat template.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Take so many examples of --data at most.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in one forward.")] = 16,
    device: Device = None,
    dtype: Dtype = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Where a run that is interrupted goes on from; OUT.checkpoints by default.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="A picture to write, layers by heads; needs matplotlib.")] = None,
    html: Annotated[Path | None, typer.Option(help="A page to write, to point at heads and to sort them.")] = None,
    top: Annotated[int, typer.Option(min=0, help="How many heads are printed for each measure.")] = 20,
    json: AsJson = False,
) -> None:
    """Measure what every head does to the answer and attends to. Asked again, it goes on from where it broke off."""
    from .. import Demonstrations
    from ..profiling import profile

    quiet_in_a_pipe()
    for path in (out, png, html):
        _check_place(path)
    if png is not None:
        # Not after an hour.
        from ..memory.pictures import _matplotlib

        _matplotlib()
    asked = examples(data, "train", limit, seed)
    shown = asked if pool is None else examples(pool, "train", None, seed)
    folder = checkpoints or out.absolute().with_name(out.name + ".checkpoints")
    loaded, processor = load(model, device, dtype)
    options: dict[str, Any] = {"corrupt": corrupt, "scale": scale, "attention": attention, "template": template}
    start = time.perf_counter()
    with _resumable(folder):
        found = profile(
            loaded,
            processor,
            asked,
            measures=[name.strip() for name in measure.split(",") if name.strip()],
            demonstrations=Demonstrations(tuple(shown), shots, seed=seed),
            gradient=gradient,
            samples=samples,
            seed=seed,
            batch_size=batch_size,
            folder=folder,
            **options,
        )
    seconds = time.perf_counter() - start
    found.save(out)
    if png is not None:
        found.plot(png)
    if html is not None:
        found.html(html)
    if checkpoints is None:
        shutil.rmtree(folder, ignore_errors=True)
    record = {"model": model, "data": data, "samples": found.n, "seconds": round(seconds, 3)}
    written = {"out": out, "png": png, "html": html}
    _report(found, record, {name: str(path.absolute()) for name, path in written.items() if path}, top, json)


def _check_place(path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise SteerError(f"{path} is a folder; give the name of the file to write")
    if not path.absolute().parent.is_dir():
        raise SteerError(f"there is no folder {path.absolute().parent} to write {path.name} into")


def _report(found: HeadMap, record: dict[str, Any], written: dict[str, str], top: int, json: bool) -> None:
    best = {
        name: [
            {
                "layer": layer,
                "head": head,
                "value": float(found.values[name][layer, head]),
                "error": None if found.n < 2 else float(found.errors[name][layer, head]),
            }
            for layer, head in found.top(top, name)
        ]
        for name in found.measures
    }
    if json:
        print_json({**record, **written, "options": dict(found.options), "top": best})
        return
    for name, rows in best.items():
        cells = [
            (
                str(row["layer"]),
                str(row["head"]),
                f"{row['value']:.4g}",
                "-" if row["error"] is None else f"{row['error']:.2g}",
            )
            for row in rows
        ]
        print_table(("layer", "head", name, "standard error"), cells)
    print(f"{found.n} samples, {record['seconds']:.1f} s")
    for path in written.values():
        print(f"saved: {path}")
