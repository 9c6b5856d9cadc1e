"""`steer profile`: what each head does, as a file, a picture, a page and a table."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._asking import MEASURES, Template, attention_option, measure_option
from ._data import Data, Limit, Pool, Seed, examples, shots_option
from ._model import BatchSize, Device, Dtype, ModelName, load
from ._output import (
    AsJson,
    Html,
    Png,
    check_drawing,
    check_file,
    out_option,
    print_json,
    print_table,
    quiet_in_a_pipe,
    top_option,
)  # fmt: skip
from ._resuming import checkpoints_option, resumable

if TYPE_CHECKING:
    from ..profiling import HeadMap


def command(
    model: ModelName,
    data: Data,
    out: Annotated[Path, out_option("the profile, a .safetensors file", "FILE")],
    measure: Annotated[str, measure_option(f"{', '.join(MEASURES)}, several with commas between")] = MEASURES[0],
    shots: Annotated[int, shots_option("demonstrations in a prompt")] = 4,
    pool: Pool = None,
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
    attention: Annotated[str, attention_option("one at a time")] = "self",
    samples: Annotated[int, typer.Option(min=1, help="How many examples are asked, at most.")] = 100,
    template: Template = None,
    seed: Seed = 0,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    device: Device = None,
    dtype: Dtype = None,
    checkpoints: Annotated[Path | None, checkpoints_option("OUT.checkpoints")] = None,
    png: Png = None,
    html: Html = None,
    top: Annotated[int, top_option("first heads, for each measure", least=0)] = 20,
    json: AsJson = False,
) -> None:
    """Measure what every attention head does to the answer.

    Asked again, it goes on from where it broke off.
    """
    from .. import Demonstrations
    from ..profiling import profile

    quiet_in_a_pipe()
    for path in (out, png, html):
        check_file(path)
    if png is not None:
        check_drawing()
    asked = examples(data, "train", limit, seed)
    shown = asked if pool is None else examples(pool, "train", None, seed)
    folder = checkpoints or out.absolute().with_name(out.name + ".checkpoints")
    loaded, processor = load(model, device, dtype)
    options: dict[str, Any] = {"corrupt": corrupt, "scale": scale, "attention": attention, "template": template}
    start = time.perf_counter()
    with resumable(folder):
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
