"""Choose what `steer demo` gives its methods: four settings each, the same examples, on dev pictures only.

    python docs/experiments/demo_settings.py

Prints the accuracy on bare queries, mean over seeds, for each task and setting; the demo takes each method's best mean.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.progress import track

import steer
from steer import fitting, prompts, zoo

TASKS = ("colour", "count", "position", "kind", "if-animal", "is-animal")
SEEDS = (0, 1)
SHOTS, QUERIES, DEV = 16, 96, 48
QUICK = {"contexts": 48, "trials": 12, "corrupt": "remove"}
SETTINGS = {
    "icv": [{"strength": strength} for strength in (0.1, 0.2, 0.3, 0.5)],
    "task_vector": [{"shots": shots} for shots in (4, 8, 12, 16)],
    "function_vector": [{"heads": heads, "strength": by, **QUICK} for heads in (10, 20) for by in (1.0, 2.0)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one task and seed, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = zoo.load()
    tasks, seeds = (TASKS[:1], SEEDS[:1]) if args.quick else (TASKS, SEEDS)
    found: dict[str, dict[str, list[float]]] = {}

    def put(name: str, task: str, accuracy: float) -> None:
        found.setdefault(name, {}).setdefault(task, []).append(accuracy)

    runs = [(task, seed) for task in tasks for seed in seeds]
    for task, seed in track(runs, "tasks and seeds", console=Console(stderr=True), transient=True):
        shots = zoo.examples(task, "demo", SHOTS, seed=seed)
        # The layer is chosen on the first dev pictures, the settings are compared on the others.
        held = zoo.examples(task, "dev", DEV + QUERIES, seed=seed)
        dev, queries = held[:DEV], held[DEV:]
        bare = list(prompts.batches(model, processor, [prompts.Prompt(query) for query in queries]))
        told = prompts.batches(model, processor, [prompts.Prompt(query, tuple(shots)) for query in queries])
        put("zero-shot", task, fitting.score(model, bare).accuracy)
        put(f"{SHOTS}-shot in context", task, fitting.score(model, told).accuracy)
        for name, settings in SETTINGS.items():
            for one in settings:
                method = steer.create(name, **one)
                options = {} if name == "icv" else {"dev": dev}
                method.fit(model, processor, shots, seed=seed, progress=False, **options)
                words = ", ".join(f"{key} {value}" for key, value in one.items() if key not in QUICK)
                put(f"{name}: {words}", task, fitting.score(model, bare, method).accuracy)

    print(f"| | {' | '.join(tasks)} | mean |\n|---|{'---|' * (len(tasks) + 1)}")
    for name, by_task in found.items():
        means = [sum(values) / len(values) for values in by_task.values()]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in [*means, sum(means) / len(means)])} |")


if __name__ == "__main__":
    main()
