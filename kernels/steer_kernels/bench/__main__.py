"""`python -m steer_kernels.bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .options import Options
from .rows import plain
from .run import run
from .table import show

EXIT_WRONG, EXIT_USAGE = 3, 2


def parser() -> argparse.ArgumentParser:
    """The options, as `steer bench` has them."""
    made = argparse.ArgumentParser("python -m steer_kernels.bench", description="Time the kernels and their rivals.")
    made.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    made.add_argument("--only", metavar="TEXT", help="rows whose name contains this")
    made.add_argument("--kernels", metavar="NAMES", default="", help="these only, a comma between them")
    made.add_argument("--dtype", metavar="NAMES", default="", help="bfloat16, float32; a comma between them")
    made.add_argument("--device", help="as torch names it; a GPU by default where there is one")
    made.add_argument("--threads", type=int, help="of torch, on a CPU")
    made.add_argument("--rounds", type=int, help="how often everything is timed")
    made.add_argument("--time-limit", type=float, metavar="SECONDS", help="begin no further row after so long")
    made.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes seconds a row")
    made.add_argument("--seed", type=int, default=0)
    for name, what in (("out", "JSON"), ("csv", "CSV"), ("png", "PNG")):
        made.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write a {what} file")
    made.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return made


def main(words: Sequence[str] | None = None) -> int:
    """Run and print; the exit code: 0, 2 for wrong usage, 3 where a row is in error."""
    given = parser().parse_args(words)
    options = Options(
        quick=given.quick,
        only=given.only,
        kernels=[name for name in given.kernels.split(",") if name],
        dtypes=[name for name in given.dtype.split(",") if name],
        device=given.device,
        threads=given.threads,
        rounds=given.rounds,
        limit=given.time_limit,
        compiled=not given.no_compile,
        seed=given.seed,
        json=given.out,
        csv=given.csv,
        plot=given.png,
    )
    try:
        about, rows = run(options)
    except ValueError as error:
        print(f"steer_kernels.bench: {error}", file=sys.stderr)
        return EXIT_USAGE
    if given.json:
        print(json.dumps({"about": about, "rows": plain(rows)}, indent=2))
    else:
        show(about, rows)
    if options.plot:
        from .plot import plot

        plot(options.plot, about, rows)
    return EXIT_WRONG if any(row.error for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
