"""`steer bench`: how fast the kernels are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SteerError
from ._complete import offer
from ._data import Seed
from ._errors import EXIT_FAILED
from ._model import AUTO, DTYPES, Device
from ._output import AsJson, Csv, Png, check_drawing, out_option, print_json


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to see that everything works.")] = False,
    only: Annotated[str | None, typer.Option(help="Rows whose name contains this.")] = None,
    kernels: Annotated[
        str, typer.Option(metavar="NAMES", help="These kernels only, with commas between: shift,jsd.")
    ] = "",
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"What it computes in: {', '.join(DTYPES)}, several with commas between; by default all.",
            autocompletion=offer(lambda: DTYPES),
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, on a CPU.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often everything is timed.")] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no further row after so long.")
    ] = None,
    no_compile: Annotated[
        bool, typer.Option("--no-compile", help="Leave torch.compile out, which takes seconds a row.")
    ] = False,
    seed: Seed = 0,
    out: Annotated[Path | None, out_option("machine and rows, as JSON", "FILE")] = None,
    csv: Csv = None,
    png: Png = None,
    json: AsJson = False,
) -> None:
    """Time every kernel on this machine, beside its rivals.

    Those are plain torch, torch.compile, other people's kernels, and a copy of as many bytes.
    """
    from steer_kernels.bench import Options, run
    from steer_kernels.bench.rows import plain
    from steer_kernels.bench.table import show

    if png is not None:
        check_drawing()

    options = Options(
        quick=quick,
        only=only,
        kernels=_names(kernels),
        dtypes=_names(dtype or ""),
        device=None if device == AUTO else device,
        threads=threads,
        rounds=rounds,
        limit=time_limit,
        compiled=not no_compile,
        seed=seed,
        json=out,
        csv=csv,
        plot=png,
    )
    try:
        about, rows = run(options)
    # torch raises the last two for a device that it does not know or was not built for.
    except (ValueError, RuntimeError, AssertionError) as error:
        raise SteerError((str(error).splitlines() or [type(error).__name__])[0]) from error
    if png is not None:
        from steer_kernels.bench.plot import plot

        plot(png, about, rows)
    if json:
        print_json({"about": about, "rows": plain(rows)})
    else:
        show(about, rows)
    if any(row.error for row in rows):
        raise typer.Exit(EXIT_FAILED)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
