"""One token: what the host takes to call an operation, and what a replayed CUDA graph takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from .options import Options
from .rows import OTHERS, Row
from .task import Call
from .timing import graph, host, times
from .variants import OURS, brief

LAYERS = 32


def decode(
    variants: Mapping[str, Call], given: tuple[Any, ...], row: Row, options: Options, rounds: int
) -> Iterator[Row]:
    """The host's time of one call, and where there are graphs, a call's share of a replayed one."""
    calls = 20 if options.quick else 200
    empty = replace(row)
    row.direction = "host"
    compared(row, host(variants, given, rounds, calls))
    yield row
    if options.on.type != "cuda":
        return
    replayed = replace(empty, direction="graph")
    try:
        replays = {name: graph(call, given, LAYERS) for name, call in variants.items()}
        turns = {name: (lambda _, replay=replay: replay()) for name, replay in replays.items()}
        whole = times(turns, [(given[0],)], rounds, 0.002, options.seed)
        compared(replayed, {name: [one / LAYERS for one in found] for name, found in whole.items()})
    except Exception as error:
        replayed.error = f"{row.kernel} cannot be captured: {brief(error)}"
    yield replayed


def compared(row: Row, seconds: dict[str, list[float]]) -> None:
    """Times, and ratios round by round."""
    ours = seconds[OURS]
    row.spread("ms", [1e3 * one for one in ours])
    row.rounds = len(ours)
    for name in OTHERS:
        if name in seconds:
            row.spread(f"x_{name}", [other / one for other, one in zip(seconds[name], ours, strict=True)])
