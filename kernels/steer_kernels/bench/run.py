"""Running the rows: check every variant against ours, measure its memory, then time them all in turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import steer_kernels

from ..dispatch import best
from .compare import differs
from .machine import cache, device_name, machine
from .options import Options
from .peak import peak
from .rivals import NAMES as RIVALS
from .rows import Row, significant, write_csv, write_json
from .task import Call, Missing, Task
from .timing import Spread, graph, host, times

# Seconds of a variant's calls in a round, and rounds, by scale.
BATCH = {"quick": 0.002, "cpu": 0.04, "cuda": 0.003}
ROUNDS = {"quick": 3, "cpu": 7, "cuda": 15}
# What a round reads and writes is so many times the last cache, by taking turns among as many sets of inputs.
CACHES, MOST_SETS = 4, 32
COPY, READ = "copy", "read"
OURS, EAGER, COMPILED = "ours", "eager", "compiled"


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
    for number, task in enumerate(chosen, 1):
        if options.limit is not None and time.perf_counter() - start > options.limit:
            left.append(task.label)
            continue
        begun = time.perf_counter()
        made = list(_task(task, options))
        rows += made
        now = time.perf_counter()
        for row in made:
            say(f"{number}/{len(chosen)} {now - start:.0f} s (+{now - begun:.1f}) {task.label}: {_told(row)}")
        about["seconds"], about["left_out"] = round(now - start, 1), left
        _save(options, about, rows)
    about["left_out"] = left
    _save(options, about, rows)
    return about, rows


def _task(task: Task, options: Options) -> Iterator[Row]:
    row = Row(
        task.kernel,
        task.form,
        task.direction,
        " ".join(f"{letter}={size}" for letter, size in task.sizes.items()),
        task.short,
        device_name(options.on),
        "",
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
            row.error = f"{task.kernel}: {_brief(error)}"
            yield row
    torch._dynamo.reset()
    if options.on.type == "cuda":
        torch.cuda.empty_cache()


def _implementation(kernel: str, device_type: str) -> str:
    return "triton" if ".fused" in best(kernel, device_type).__module__ else "torch"


def _measure(task: Task, function: Call, row: Row, options: Options) -> Iterator[Row]:
    generator = torch.Generator(options.on).manual_seed(options.seed)
    given = task.make(generator)
    variants = _agreeing(task, function, given, row, options)
    if row.error and EAGER not in variants:
        yield row
        return
    for name, call in variants.items():
        most = peak(call, given)
        setattr(row, f"peak_{name}_mb", None if most is None else significant(most / 1e6))
    if task.decode:
        yield from _decode(variants, given, row, options)
        return
    sets = _sets(given, task.floor, options)
    against = _bandwidth(task, len(sets), options.on)
    seconds = times({**variants, **against}, sets, _rounds(options), BATCH[options.scale], options.seed)
    _fill(row, task, seconds)
    yield row


def _agreeing(task: Task, function: Call, given: tuple[Any, ...], row: Row, options: Options) -> dict[str, Call]:
    """The variants that run here and give what ours gives; the others are named in `note` or `error`."""

    def ours(*inputs: Any) -> Any:
        return task.ours(function, *inputs)

    found: dict[str, Call] = {OURS: task.call(ours)}
    wanted = found[OURS](*given)
    plain = task.call(task.eager)
    with _noted(row, "eager"):
        wrong = differs(wanted, plain(*given), task.slack)
        if wrong:
            row.error = f"{task.kernel} and the plain formula differ: {wrong}"
            return {}
        found[EAGER] = plain
    if options.compiled and task.large and not options.quick:
        with _noted(row, "torch.compile"):
            compiled = task.call(torch.compile(task.eager, dynamic=False, fullgraph=True))
            wrong = differs(compiled(*given), wanted, task.slack)
            if wrong:
                row.error = f"torch.compile of the plain formula is wrong: {wrong}"
            else:
                found[COMPILED] = compiled
    for name, rival in task.rivals.items():
        with _noted(row, name):
            call = rival.make()
            slack = task.slack if rival.tolerance is None else rival.tolerance
            wrong = differs(rival.of_theirs(call(*given)), rival.of_ours(wanted), slack)
            if wrong:
                row.error = f"{name} gives something else: {wrong}"
            else:
                found[name] = call
    return found


@contextmanager
def _noted(row: Row, name: str) -> Iterator[None]:
    """What keeps another variant from running is noted; it is no error of ours."""
    try:
        yield
    except Missing as missing:
        _note(row, str(missing))
    except torch.OutOfMemoryError:
        _note(row, f"{name}: out of memory")
        torch.cuda.empty_cache()
    except Exception as error:
        _note(row, f"{name}: {_brief(error)}")


def _note(row: Row, text: str) -> None:
    row.note = f"{row.note}; {text}" if row.note else text


def _decode(variants: dict[str, Call], given: tuple[Any, ...], row: Row, options: Options) -> Iterator[Row]:
    """The host's time of one call, and where there are graphs, a call's share of a replayed one."""
    rounds = _rounds(options)
    calls = 20 if options.quick else 200
    row.direction = "host"
    seconds = {name: host(call, given, rounds, calls) for name, call in variants.items()}
    _compared(row, seconds)
    yield row
    if options.on.type != "cuda":
        return
    replayed = Row(
        **{
            name: getattr(row, name)
            for name in ("kernel", "form", "sizes", "dtype", "device", "implementation", "large", "gated")
        },
        direction="graph",
    )
    layers = 32
    try:
        replays = {name: graph(call, given, layers) for name, call in variants.items()}
    except Exception as error:
        replayed.error = f"{row.kernel} cannot be captured: {_brief(error)}"
        yield replayed
        return
    sets = [(given[0],)]
    whole = times(
        {name: (lambda _, replay=replay: replay()) for name, replay in replays.items()}, sets, rounds, 0.002, 0
    )
    _compared(replayed, {name: [one / layers for one in found] for name, found in whole.items()})
    yield replayed


def _compared(row: Row, seconds: dict[str, list[float]]) -> None:
    """Times, and ratios round by round."""
    ours = seconds[OURS]
    row.spread("ms", [1e3 * one for one in ours])
    row.rounds = len(ours)
    for name in (EAGER, COMPILED, *RIVALS):
        if name in seconds:
            row.spread(f"x_{name}", [other / one for other, one in zip(seconds[name], ours, strict=True)])


def _fill(row: Row, task: Task, seconds: dict[str, list[float]]) -> None:
    """All that follows from the times."""
    _compared(row, seconds)
    ours = seconds[OURS]
    row.gb = significant(task.floor / 1e9)
    row.gb_s = significant(task.floor / 1e9 / Spread.of(ours).middle)
    row.copy_gb_s = significant(task.floor / 1e9 / Spread.of(seconds[COPY]).middle)
    row.spread("of_copy", [copy / one for copy, one in zip(seconds[COPY], ours, strict=True)])
    if READ in seconds:
        row.read_gb_s = significant(task.floor / 1e9 / Spread.of(seconds[READ]).middle)
        row.of_read = significant(Spread.of([r / one for r, one in zip(seconds[READ], ours, strict=True)]).middle)


def _sets(given: tuple[Any, ...], floor: int, options: Options) -> list[tuple[Any, ...]]:
    """Copies of the inputs: so many that between two uses of one the cache holds others."""
    count = 2 if options.quick else _turns(floor, options.on)
    again = [tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in given) for _ in range(count - 1)]
    return [given, *again]


def _turns(floor: int, device: torch.device) -> int:
    return max(1, min(MOST_SETS, -(-CACHES * cache(device) // floor)))


def _bandwidth(task: Task, count: int, device: torch.device) -> dict[str, Call]:
    """A copy that moves as many bytes as the row must, half of them read; and a sum that only reads as many."""
    half = max(4, task.floor // 2)
    sources = [torch.ones(half, dtype=torch.uint8, device=device) for _ in range(count)]
    targets = [torch.empty_like(source) for source in sources]
    turn = iter(_forever(count))

    def copy(*_: Any) -> torch.Tensor:
        at = next(turn)
        return targets[at].copy_(sources[at])

    found: dict[str, Call] = {COPY: copy}
    if task.reads:
        wide = [torch.ones(max(1, task.floor // 4), device=device) for _ in range(count)]

        def read(*_: Any) -> torch.Tensor:
            return wide[next(turn)].sum()

        found[READ] = read
    return found


def _forever(count: int) -> Iterator[int]:
    while True:
        yield from range(count)


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


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _told(row: Row) -> str:
    if row.error:
        return f"ERROR {row.error}"
    parts = [f"{row.direction} {row.ms:.4g} ms"]
    if row.of_copy is not None:
        parts.append(f"{row.of_copy:.2f} of copy")
    parts += [f"{getattr(row, f'x_{name}'):.2f} x {name}" for name in (EAGER, COMPILED, *RIVALS) if _has(row, name)]
    return ", ".join(parts) + (f" ({row.note})" if row.note else "")


def _has(row: Row, name: str) -> bool:
    return getattr(row, f"x_{name}") is not None
