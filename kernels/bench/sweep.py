"""Which tiles are fastest on this card: every setting of a kernel on its large rows, beside a copy.

    python kernels/bench/sweep.py                     all kernels, on a GPU (a variant takes a second to compile)
    python kernels/bench/sweep.py query_shift jsd     these
    python kernels/bench/sweep.py --quick             in Triton's interpreter, to see that it works

What is printed first for a row is what `fused/<kernel>.py` chooses now. A setting that gives another result is named
and has no time. To change a choice, edit the function `_settings` of that file, or `_jsd_plan.py`.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# Before triton is imported: without a GPU there is only its interpreter.
if not os.path.exists("/dev/nvidia0"):
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from steer_kernels.bench.cases import tasks
from steer_kernels.bench.compare import differs
from steer_kernels.bench.options import Options
from steer_kernels.bench.task import Task
from steer_kernels.bench.timing import Spread, times
from steer_kernels.bench.variants import COPY, bandwidth, brief, sets
from steer_kernels.fused import find

WARPS = (2, 4, 8)
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "shift": {"BLOCK_R": (1, 2), "LOOP": (1, 4), "num_warps": (4, 8)},
    "head_shift": {"ROWS": (16, 32, 64), "num_warps": (4, 8)},
    "query_shift": {"ROWS": (16, 32, 64), "STAGES": (1, 2, 3), "num_warps": WARPS},
    "jsd": {"plan": ("row", "split", "group")},
    "token_scores": {"BLOCK_M": (32, 64), "BLOCK_N": (32, 64, 128), "num_warps": (4, 8)},
    "compact": {"BLOCK_N": (16, 32, 64, 128), "num_warps": (4, 8)},
}
# Where a setting is chosen, by the name of the function.
PLACES = {"jsd": "choose"}


def variants(kernel: str, task: Task, quick: bool) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Ours as it is, then with every setting of the grid in the place of what it would choose."""
    module = importlib.import_module(f"steer_kernels.fused.{kernel}")
    function, place = find(kernel), PLACES.get(kernel, "_settings")
    chosen = getattr(module, place)

    def call(choice: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            setattr(module, place, choice)
            try:
                return task.ours(function, *inputs)
            finally:
                setattr(module, place, chosen)

        return run

    yield "as it is", call(chosen)
    grid = {name: values[:2] if quick else values for name, values in GRIDS[kernel].items()}
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        name = " ".join(f"{key}={value}" for key, value in setting.items())
        if place == "choose":
            yield name, call(lambda *_, plan=setting["plan"], **__: plan)
        else:
            yield name, call(lambda *args, setting=setting, **kwargs: {**chosen(*args, **kwargs), **setting})


def sweep(kernel: str, task: Task, options: Options) -> None:
    """One row: every variant checked, then all timed in turns; the best first."""
    given = task.make(torch.Generator(options.on).manual_seed(options.seed))
    found: dict[str, Callable[..., Any]] = {}
    wanted: Any = None
    print(f"{task.label}", flush=True)
    for name, call in variants(kernel, task, options.quick):
        try:
            result = call(*given)
            wanted = result if wanted is None else wanted
            wrong = differs(wanted, result, task.slack)
        except Exception as error:
            wrong = brief(error)
        if wrong:
            print(f"  left out: {name}: {wrong[:120]}")
        else:
            found[name] = call
    turns = sets(given, task.floor, options)
    against = bandwidth(task, len(turns), options.on)
    seconds = times({**found, COPY: against[COPY]}, turns, 3 if options.quick else 9, 0.003, options.seed, 3.0)
    of_copy = {n: Spread.of([c / o for c, o in zip(seconds[COPY], seconds[n], strict=True)]).middle for n in found}
    for name in sorted(found, key=lambda n: (n != "as it is", -of_copy[n])):
        print(f"  {1e3 * Spread.of(seconds[name]).middle:10.4f} ms  {of_copy[name]:5.2f} of copy  {name}")


def main() -> int:
    """Sweep what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", help=f"among {', '.join(GRIDS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two values of each setting")
    given = parser.parse_args()
    unknown = [name for name in given.kernels if name not in GRIDS]
    if unknown:
        parser.error(f"there is nothing to sweep for {unknown[0]!r}: there are {', '.join(GRIDS)}")
    if not torch.cuda.is_available() and not given.quick:
        parser.error("torch finds no GPU, and the interpreter's times mean nothing; --quick shows that it works")
    options = Options(quick=given.quick)
    for kernel in given.kernels or GRIDS:
        for task in tasks(options.scale):
            if task.kernel == kernel and task.large and not task.learn:
                sweep(kernel, task, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
