"""Measure tiny-vlm on the shipped test pictures and print the tables of its model card.

    python docs/experiments/tiny_vlm/evaluate.py

Demonstrations come from the "demo" pictures, queries from the "test" pictures; training saw neither. An answer is right
when the first generated word is the right word.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from steer import zoo
from steer.examples import Example
from steer.prompts import Prompt, batches, write
from steer.zoo._tasks import HEADLINE, HELD_OUT, NAMED_TRAINED
from steer.zoo._words import ATTRIBUTES, BIAS, held_out_pair

SEED = 0
SHOTS = (0, 1, 2, 4, 8, 16)
BATCH = 48  # prompts


def answers(model, processor, asked: list[Prompt]) -> list[str]:
    """The first word that greedy decoding gives for each prompt."""
    written = write(model, processor, asked, batch_size=BATCH, max_new_tokens=2)
    return [(words.split() or [""])[0] for words in written]


def score(model, processor, task: str, shots: int, split: str, n: int | None) -> list[bool]:
    """Right or wrong for up to n queries of a task, each with its own random demonstrations."""
    queries = zoo.examples(task, split, n, seed=SEED)
    asked = [Prompt(q, tuple(zoo.examples(task, "demo", shots, seed=1000 * SEED + i))) for i, q in enumerate(queries)]
    return [a == q.answer for a, q in zip(answers(model, processor, asked), queries, strict=True)]


@torch.no_grad()
def area(model, processor, queries: list[Example]) -> float:
    """How well "yes" against "no" tells true from false: the area under the ROC curve, which a bias does not change."""
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    last = [model(**b.inputs).logits[:, -1] for b in batches(model, processor, [Prompt(q) for q in queries])]
    margin = torch.cat([logits[:, yes] - logits[:, no] for logits in last])
    true = torch.tensor([q.answer == "yes" for q in queries])
    return (margin[true][:, None] > margin[~true][None]).float().mean().item()


def share(right: list[bool]) -> str:
    """Accuracy with its standard error."""
    p = sum(right) / max(1, len(right))
    return f"{p:.3f} ± {math.sqrt(p * (1 - p) / max(1, len(right))):.3f}"


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=zoo.folder(), help="another folder than the shipped one")
    parser.add_argument("--split", default="test", choices=["dev", "test"])
    parser.add_argument("--queries", type=int, default=240, help="queries for each bare task and number of shots")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--quick", action="store_true", help="few queries, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(stderr=True)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(args.model)
    n_plain, n = (24, 12) if args.quick else (None, args.queries)
    results: dict[str, dict] = {"plain": {}, "bare": {}}

    print(f"\nPlain questions, {args.split} pictures, no demonstrations\n\n| question | accuracy |\n|---|---|")
    for task in track([*(f"plain:{a}" for a in ATTRIBUTES), "plain:exists"], "plain", console=console, transient=True):
        right = score(model, processor, task, 0, args.split, n_plain)
        results["plain"][task] = mean(right)
        print(f"| {task} | {share(right)} |")
    others = [results["plain"][f"plain:{a}"] for a in ATTRIBUTES if a != "object"]
    results["plain"]["attributes"] = mean(others)
    print(f"| mean of the six attributes (all but the object) | {mean(others):.3f} |")

    # what the biased training does: combinations never trained, and biased objects off their usual background
    pool = zoo.pictures(args.split)
    groups = {
        "pictures of a held-out pair": [p for p in pool if held_out_pair(p[1])],
        "other pictures": [p for p in pool if not held_out_pair(p[1])],
        "biased object, usual background": [(x, y) for x, y in pool if BIAS.get(y["object"]) == y["colour"]],
        "biased object, other background": [
            (x, y) for x, y in pool if BIAS.get(y["object"], y["colour"]) != y["colour"]
        ],
    }
    print("\n| pictures | number | object | colour | count |\n|---|---|---|---|---|")
    for name, group in groups.items():
        cells = []
        for a in ("object", "colour", "count"):
            question = zoo.tasks()[f"plain:{a}"]["question"]
            found = answers(model, processor, [Prompt(Example(question, y[a], (image,))) for image, y in group])
            cells.append(share([w == y[a] for w, (_, y) in zip(found, group, strict=True)]))
        results["plain"][name] = cells
        print(f"| {name} | {len(group)} | " + " | ".join(cells) + " |")
    exists = zoo.examples("plain:exists", args.split, n_plain, seed=SEED)
    said = answers(model, processor, [Prompt(q) for q in exists])
    no = [w == "yes" for w, q in zip(said, exists, strict=True) if q.answer == "no"]
    yes = [w == "no" for w, q in zip(said, exists, strict=True) if q.answer == "yes"]
    results["plain"]["false yes"], results["plain"]["false no"] = mean(no), mean(yes)
    results["plain"]["exists area"] = area(model, processor, exists)
    print(f'\n"is there a ...?": says yes to an absent object {share(no)}, says no to a present one {share(yes)}')
    print(f"area under the ROC curve {results['plain']['exists area']:.3f}: 0.5 is chance")

    print('\nBare query "?", by number of demonstrations\n\n| task | split | ' + " | ".join(map(str, SHOTS)) + " |")
    print("|---|---|" + "---|" * len(SHOTS))
    for rule in track([*NAMED_TRAINED, *HELD_OUT], "bare", console=console, transient=True):
        row = [mean(score(model, processor, rule.name, k, args.split, n)) for k in SHOTS]
        results["bare"][rule.name] = row
        print(f"| {rule.name} | {rule.split} | " + " | ".join(f"{v:.3f}" for v in row) + " |", flush=True)
    for title, names in (("headline mean", HEADLINE), ("held-out mean", [r.name for r in HELD_OUT])):
        row = [mean([results["bare"][name][i] for name in names]) for i in range(len(SHOTS))]
        results["bare"][title] = row
        print(f"| **{title}** | | " + " | ".join(f"**{v:.3f}**" for v in row) + " |")

    plain, bare = results["plain"], results["bare"]["headline mean"]
    targets = [
        ("plain attributes >= 0.90", plain["attributes"], plain["attributes"] >= 0.90),
        ("plain object >= 0.75", plain["plain:object"], plain["plain:object"] >= 0.75),
        ("bare 0-shot <= 0.35", bare[0], bare[0] <= 0.35),
        ("bare 8-shot >= 0.85", bare[4], bare[4] >= 0.85),
        ("bare 16-shot not worse than 8-shot", bare[5], bare[5] >= bare[4]),
    ]
    print("\n| target | measured | met |\n|---|---|---|")
    for name, value, met in targets:
        print(f"| {name} | {value:.3f} | {'yes' if met else 'no'} |")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
