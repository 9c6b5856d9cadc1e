"""`steer bench`: how fast the kernels are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SteerError
from ._model import Device

EXIT_FAILED = 3


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, to see that everything works.")] = False,
    only: Annotated[str | None, typer.Option(help="Rows whose name contains this.")] = None,
    kernels: Annotated[str, typer.Option(help="These kernels only, a comma between them.")] = "",
    dtype: Annotated[str, typer.Option(help="These dtypes only, a comma between them: bf16, fp32.")] = "",
    device: Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch, on a CPU.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How often everything is timed.")] = None,
    limit: Annotated[float | None, typer.Option(help="Begin no further row after so many seconds.")] = None,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Race torch.compile, which takes seconds a row.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of the inputs and the orders.")] = 0,
    json: Annotated[Path | None, typer.Option(help="A JSON file to write.")] = None,
    csv: Annotated[Path | None, typer.Option(help="A CSV file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A picture to write; needs matplotlib.")] = None,
) -> None:
    """Time every kernel beside plain torch, torch.compile, other people's kernels and a copy of as many bytes."""
    from steer_kernels.bench import Options, run
    from steer_kernels.bench.table import show

    options = Options(
        quick=quick,
        only=only,
        kernels=_names(kernels),
        dtypes=_names(dtype),
        device=device,
        threads=threads,
        rounds=rounds,
        limit=limit,
        compiled=compile,
        seed=seed,
        json=json,
        csv=csv,
        plot=plot,
    )
    try:
        about, rows = run(options)
    except ValueError as error:
        raise SteerError(str(error)) from error
    show(about, rows)
    if plot is not None:
        from steer_kernels.bench.plot import plot as draw

        draw(plot, about, rows)
    if any(row.error for row in rows):
        raise typer.Exit(EXIT_FAILED)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
