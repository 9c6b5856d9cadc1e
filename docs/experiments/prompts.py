"""Learned prompts and adapters compared on tiny-clip: few shots, base and new classes, another style.

    python docs/experiments/prompts.py run                      # about two hours on one core
    python docs/experiments/prompts.py run --workers 2 --worker 0 & ... --worker 1    # the same on two
    python docs/experiments/prompts.py speed                    # on a machine that does nothing else
    python docs/experiments/prompts.py page                     # docs/results/prompts.md and its pictures
    python docs/experiments/prompts.py small --out FOLDER       # one set, five classes, three methods: seconds

A run that was cut off goes on where it was. What is compared (prompts/protocol.py, prompts/rows.py) and claimed
(prompts/claims.py) was written down before. Needs scikit-learn and matplotlib: pip install "steer-vlm[experiments]".
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "prompts"))
RESULTS = HERE.parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "speed", "page", "small"))
    parser.add_argument("--worker", type=int, default=0, help="which of the processes this is")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the run")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so many")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records and the page")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what != "page":
        _run(args)
    if args.what in ("page", "small"):
        import page

        page.write(args.out)


def _run(args: argparse.Namespace) -> None:
    import torch
    from protocol import SMALL, Scale
    from runs import Book, Runs

    torch.set_num_threads(1)
    if args.what == "speed":
        import speed

        speed.measure(Book(args.out / "prompts-speed.jsonl"))
        return
    book = Book(args.out / "prompts.jsonl")
    scale = SMALL if args.what == "small" else Scale()
    Runs(scale, book, args.worker, args.workers).all(until=time.time() + 60 * args.minutes)


if __name__ == "__main__":
    main()
