"""Running the rows: check every variant against ours, measure its memory, then time them all in turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

import steer_kernels

from ..dispatch import best
from .decode import compared, decode
from .heap import kept
from .machine import device_name, machine
from .options import Options
from .peak import peak
from .rows import NEW, OTHERS, Row, significant, write_csv, write_json
from .task import Call, Task
from .timing import Spread, times
from .variants import COPY, EAGER, OURS, READ, agreeing, bandwidth, brief, sets

# Seconds of a variant's calls in a round, and rounds, by scale.
BATCH = {"quick": 0.002, "cpu": 0.04, "cuda": 0.003}
ROUNDS = {"quick": 3, "cpu": 7, "cuda": 15}
MOST = {"quick": 1.0, "cpu": 10.0, "cuda": 3.0}  # seconds of all rounds; slow rows have fewer of them


def run(options: Options, say: Callable[[str], None] | None = None) -> tuple[dict[str, Any], list[Row]]:
    """Measure what the options ask for; what was done so far is in the files after every row.

    Args:
        options: see there.
        say: called with a line for every row as it is done; None: lines on standard error.

    Returns:
        The machine and the rows. Rows that the limit left out are named under `left_out`.

    Raises:
        ValueError: options that cannot be met.
    """
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    chosen = options.chosen()
    if options.threads:
        torch.set_num_threads(options.threads)
    about = {**machine(options.on), "scale": options.scale, "rounds": _rounds(options), "seed": options.seed}
    rows: list[Row] = []
    left: list[str] = []
    start = time.perf_counter()
    if options.on.type == "cuda":
        torch.cuda.set_device(options.on)
        _wake(options.on)
    cpu = options.on.type == "cpu"
    # Before memory is kept: nothing brings malloc back to where it was.
    jobs = [(task, NEW) for task in chosen if task.fresh and cpu] + [(task, "") for task in chosen]
    with ExitStack() as stack:
        for number, (task, memory) in enumerate(jobs, 1):
            name = f"{task.label} {memory}".rstrip()
            if options.limit is not None and time.perf_counter() - start > options.limit:
                left.append(name)
                continue
            if cpu and not memory and "memory_kept" not in about:
                about["memory_kept"] = stack.enter_context(kept())
            begun = time.perf_counter()
            made = list(_task(task, memory, options))
            rows += made
            now = time.perf_counter()
            for row in made:
                say(f"{number}/{len(jobs)} {now - start:.0f} s (+{now - begun:.1f}) {name}: {_told(row)}")
            about["seconds"], about["left_out"] = round(now - start, 1), left
            _save(options, about, rows)
    about["left_out"] = left
    _save(options, about, rows)
    return about, rows


def _task(task: Task, memory: str, options: Options) -> Iterator[Row]:
    row = Row(
        task.kernel,
        task.form,
        task.direction,
        " ".join(f"{letter}={size}" for letter, size in task.sizes.items()),
        task.short,
        device_name(options.on),
        memory=memory,
        large=task.large,
        gated=task.gated,
    )
    function = getattr(steer_kernels, task.kernel, None)
    if function is None:
        row.error = f"steer_kernels has no {task.kernel}"
        yield row
        return
    with torch.set_grad_enabled(bool(task.learn)):
        try:
            row.implementation = _implementation(task.kernel, options.on.type)
            yield from _measure(task, function, row, options)
        except Exception as error:
            row.error = f"{task.kernel}: {brief(error)}"
            yield row
    torch._dynamo.reset()
    if options.on.type == "cuda":
        torch.cuda.empty_cache()


def _implementation(kernel: str, device_type: str) -> str:
    return "triton" if ".fused" in best(kernel, device_type).__module__ else "torch"


def _measure(task: Task, function: Call, row: Row, options: Options) -> Iterator[Row]:
    generator = torch.Generator(options.on).manual_seed(options.seed)
    given = task.make(generator)
    variants = agreeing(task, function, given, row, options)
    if row.error and EAGER not in variants:
        yield row
        return
    for name, call in variants.items():
        most = peak(call, given)
        setattr(row, f"peak_{name}_mb", None if most is None else significant(most / 1e6))
    if task.decode:
        yield from decode(variants, given, row, options, _rounds(options))
        return
    turns = sets(given, task.floor, options)
    against = bandwidth(task, len(turns), options.on)
    most = MOST[options.scale] if options.rounds is None else float("inf")
    seconds = times({**variants, **against}, turns, _rounds(options), BATCH[options.scale], options.seed, most)
    _fill(row, task, seconds)
    yield row


def _fill(row: Row, task: Task, seconds: dict[str, list[float]]) -> None:
    """All that follows from the times."""
    compared(row, seconds)
    ours = seconds[OURS]
    row.gb = significant(task.floor / 1e9)
    row.gb_s = significant(task.floor / 1e9 / Spread.of(ours).middle)
    row.copy_gb_s = significant(task.floor / 1e9 / Spread.of(seconds[COPY]).middle)
    row.spread("of_copy", [copy / one for copy, one in zip(seconds[COPY], ours, strict=True)])
    if READ in seconds:
        row.read_gb_s = significant(task.floor / 1e9 / Spread.of(seconds[READ]).middle)
        row.of_read = significant(Spread.of([r / one for r, one in zip(seconds[READ], ours, strict=True)]).middle)


def _rounds(options: Options) -> int:
    return options.rounds or ROUNDS[options.scale]


def _wake(device: torch.device) -> None:
    """Half a second of work, so that the clock is where it stays."""
    block = torch.ones(2**26, device=device)
    end = time.perf_counter() + 0.5
    while time.perf_counter() < end:
        block.mul_(1.0)
        torch.cuda.synchronize()


def _save(options: Options, about: dict[str, Any], rows: list[Row]) -> None:
    if options.json:
        write_json(options.json, about, rows)
    if options.csv:
        write_csv(options.csv, rows)


def _told(row: Row) -> str:
    if row.error:
        return f"ERROR {row.error}"
    parts = [f"{row.direction} {row.ms:.4g} ms"]
    if row.of_copy is not None:
        parts.append(f"{row.of_copy:.2f} of copy")
    parts += [f"{getattr(row, f'x_{name}'):.2f} x {name}" for name in OTHERS if _has(row, name)]
    return ", ".join(parts) + (f" ({row.note})" if row.note else "")


def _has(row: Row, name: str) -> bool:
    return getattr(row, f"x_{name}") is not None
