"""Hallucination, language bias, calibration, printed words and larger pictures: what each method moves, and breaks.

    python docs/experiments/reliability.py run              # an hour on one core; pip install --no-deps mitigv
    python docs/experiments/reliability.py cost             # on a machine that does nothing else
    python docs/experiments/reliability.py page             # docs/results/reliability.md and its pictures

A run that was cut off goes on where it was. What is claimed was written down before (reliability/protocol.py).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "reliability"))
RESULTS = HERE.parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "cost", "page"))
    parser.add_argument("--rows", nargs="*", default=(), help="only these")
    parser.add_argument("--aims", nargs="*", default=("objects", "print"), help="only these")
    parser.add_argument("--model", default="tiny-scenes", help="one of the zoo that knows scenes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records and the page")
    parser.add_argument("--quick", action="store_true", help="few scenes and steps, to see that it runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "page":
        import page

        page.write(args.out)
        return
    import torch
    from protocol import ROWS, Sizes
    from runs import Book, Runs

    from steer import zoo

    torch.set_num_threads(1)
    sizes = replace(Sizes(), dev=6, test=6, steps=3, seeds=(0, 1)) if args.quick else Sizes()
    runs = Runs(*zoo.load(args.model), Book(args.out / "reliability.jsonl"), sizes)
    runs.baseline()
    if args.what == "cost":
        import cost

        runs.book.once("cost", lambda: cost.measure(runs))
        return
    for row in ROWS:
        if not args.rows or row.name in args.rows:
            runs.row(row, args.aims)


if __name__ == "__main__":
    main()
