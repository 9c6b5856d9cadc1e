"""How well first-order estimates of heads' effects stand for exact ones, on tiny-vlm.

    python docs/experiments/profiling.py            (two minutes on one core; --quick: seconds, writes nothing)

Every headline task of the zoo, no other. For each the same queries and demonstrations are profiled twice, exactly and
with `gradient=True`. Written: docs/results/profiling.json with Spearman's rank correlation over all heads, how many of
the five top heads are the same, and seconds of one core (processor time); docs/profiling.png, the exact profile of the
task "colour". Printed: the rows of the table in docs/profiling.md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import steer

SEED, SHOTS, SAMPLES, TOP = 0, 4, 40, 5
MEASURES = ("indirect_effect", "ablation")
DOCS = Path(__file__).parents[1]


def ranks(x: torch.Tensor) -> torch.Tensor:
    return x.flatten().argsort().argsort().double()


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """No two heads have the same effect, so ranks are plain."""
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def profiled(model, processor, task: str, samples: int, **options) -> tuple[steer.HeadMap, float]:
    examples = steer.zoo.examples(task, "demo", samples)
    shown = steer.Demonstrations(tuple(examples), SHOTS, seed=SEED)
    start = time.process_time()
    found = steer.profile(
        model, processor, examples, demonstrations=shown, corrupt="remove", samples=samples, seed=SEED, **options
    )
    return found, time.process_time() - start


def compared(exact: steer.HeadMap, first: steer.HeadMap) -> dict[str, dict[str, float]]:
    return {
        name: {
            "spearman": round(spearman(exact.values[name], first.values[name]), 3),
            "top": len(set(exact.top(TOP, name)) & set(first.top(TOP, name))),
            "largest": round(float(exact.values[name].abs().max()), 4),
            "error": round(float(exact.errors[name].flatten()[exact.values[name].abs().argmax()]), 4),
        }
        for name in MEASURES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    model, processor = steer.zoo.load()
    tasks = [name for name, facts in steer.zoo.tasks().items() if facts["headline"]]
    rows, samples = {}, 4 if quick else SAMPLES
    for task in tasks[:2] if quick else tasks:
        exact, slow = profiled(model, processor, task, samples, measures=MEASURES)
        first, fast = profiled(model, processor, task, samples, measures=MEASURES, gradient=True)
        rows[task] = {**compared(exact, first), "seconds": {"exact": round(slow, 1), "first_order": round(fast, 1)}}
    if not quick:
        settings = {"seed": SEED, "shots": SHOTS, "samples": SAMPLES, "top": TOP, "torch": torch.__version__}
        text = json.dumps({"model": "tiny-vlm", "settings": settings, "tasks": rows}, indent=1)
        (DOCS / "results" / "profiling.json").write_text(text + "\n")
        drawn, _ = profiled(model, processor, "colour", samples, measures=(*MEASURES, "attention"))
        drawn.plot(DOCS / "profiling.png")
    for task, row in rows.items():
        cells = [f"{row[name]['spearman']:.2f} | {row[name]['top']} of {TOP}" for name in MEASURES]
        seconds = row["seconds"]
        print(f"| `{task}` | {' | '.join(cells)} | {seconds['exact']:.1f} | {seconds['first_order']:.1f} |")


if __name__ == "__main__":
    main()
