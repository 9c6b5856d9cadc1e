"""Measure tiny-scenes on test scenes and print the tables of its model card.

    python docs/experiments/tiny_scenes/evaluate.py

Training saw none of these scenes. ± is one standard error over scenes or questions, whichever are counted.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from steer import zoo
from steer.examples import Example
from steer.prompts import Prompt, batches, write

SCENES = 600
BATCH = 64  # prompts
WORDS = {"none": "no word", "right": "a right word", "wrong": "a wrong word"}
SHOTS = (0, 1, 4)


class Judge:
    """A model with what is asked of it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.yes, self.no = self.processor.tokenizer.convert_tokens_to_ids(["yes", "no"])

    def answers(self, queries: list[Example], shots: list[tuple[Example, ...]] | None = None) -> list[str]:
        """What it writes."""
        asked = [Prompt(q, s) for q, s in zip(queries, shots or [()] * len(queries), strict=True)]
        return write(self.model, self.processor, asked, batch_size=BATCH, max_new_tokens=5)

    def right(self, queries: list[Example], shots: list[tuple[Example, ...]] | None = None) -> list[bool]:
        return [said == q.answer for said, q in zip(self.answers(queries, shots), queries, strict=True)]

    @torch.no_grad()
    def margins(self, queries: list[Example]) -> torch.Tensor:
        """The logit of "yes" minus that of "no", [queries]."""
        parts = batches(self.model, self.processor, [Prompt(q) for q in queries], batch_size=BATCH)
        last = torch.cat([self.model(**part.inputs).logits[:, -1] for part in parts])
        return last[:, self.yes] - last[:, self.no]

    def read_at(self, side: int) -> None:
        """Read pictures at side x side pixels from now on: more picture tokens, positions interpolated."""
        self.processor.image_processor.size = {"shortest_edge": side}
        self.processor.image_processor.crop_size = {"height": side, "width": side}
        self.model.model.vision_tower.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {**kwargs, "interpolate_pos_encoding": True}), with_kwargs=True
        )


def share(right: list[bool]) -> str:
    """A proportion with its standard error."""
    p = sum(right) / len(right)
    return f"{p:.3f} ± {math.sqrt(p * (1 - p) / len(right)):.3f}"


def table(title: str, *columns: str) -> None:
    """A heading and the head of a Markdown table."""
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))


def asked(scenes: list[zoo.Scene], kind: str, negatives: str = "random") -> list[Example]:
    return [q for scene in scenes for q in zoo.scene_questions(scene, kind, negatives)]


def exists(judge: Judge, scenes: list[zoo.Scene], title: str) -> dict[str, float]:
    """Three rows: "is there a ...?" with each kind of objects that are not there."""
    found = {}
    for kind in zoo.scene_words.NEGATIVES:
        queries = asked(scenes, "exists", kind)
        margin, true = judge.margins(queries), torch.tensor([q.answer == "yes" for q in queries])
        area = (margin[true][:, None] > margin[~true][None]).float().mean().item()
        yes = margin > 0
        found[kind] = {"right": (yes == true).float().mean().item(), "area": area, "yes": yes.float().mean().item()}
        print(
            f"| {title} | {kind} | {share((yes == true).tolist())} | {area:.3f} | {found[kind]['yes']:.3f} "
            f"| {share(yes[~true].tolist())} | {share((~yes[true]).tolist())} |"
        )
    return found


def captions(judge: Judge, scenes: list[zoo.Scene], title: str) -> dict[str, float]:
    """One row: how captions name what is there, and what is not (as CHAIR counts it)."""
    said = [words.split() for words in judge.answers(asked(scenes, "caption"))]
    pairs = list(zip(said, scenes, strict=True))
    named = [name in words for words, scene in pairs for name in scene.names]
    false = [word not in scene.names for words, scene in pairs for word in words]
    with_false = [any(word not in scene.names for word in words) for words, scene in pairs]
    exact = [tuple(words) == scene.names for words, scene in pairs]
    print(f"| {title} | {share(named)} | {share(exact)} | {share(false)} | {share(with_false)} |")
    return {"named": sum(named) / len(named), "chair_i": sum(false) / len(false), "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="another folder than the shipped one")
    parser.add_argument("--split", default="test", choices=["dev", "test"])
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--quick", action="store_true", help="few scenes, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judge = Judge(args.model or zoo.folder("tiny-scenes"))
    n = 20 if args.quick else args.scenes
    sets = {kind: zoo.scenes(args.split, n, word=kind) for kind in ("none", "right", "wrong")}
    biased = zoo.scenes(args.split, n, biased=True, word="law")
    plain = sets["none"]
    results: dict[str, object] = {}

    columns = ("right", "area under ROC", "says yes", "yes to what is not there", "no to what is there")
    table('"is there a ...?", half of the questions about what is there', "scenes", "not there", *columns)
    results["exists"] = exists(judge, plain, "uniform, no word")
    results["exists biased"] = exists(judge, biased, "law of training")

    table("Captions", "scenes", "things named", "exact", "of the words said, false", "captions with a false word")
    told = {title: captions(judge, part, f"uniform, {WORDS[title]}") for title, part in sets.items()}
    told["biased"] = captions(judge, biased, "law of training")
    results["captions"] = {k: {a: b for a, b in v.items() if a != "said"} for k, v in told.items()}

    table("Other questions, uniform scenes", "question", "right")
    for kind in ("colour", "count", "where"):
        right = judge.right(asked(plain, kind))
        results[kind] = sum(right) / len(right)
        print(f"| {kind} | {share(right)} |")
    for kind, part in sets.items():
        right = judge.right(asked(part, "say"))
        results[f"say {kind}"] = sum(right) / len(right)
        print(f"| say, {WORDS[kind]} | {share(right)} |")

    table("A wrong word on the same scenes", "measure", "no word", "wrong word")
    words = [scene.word for scene in sets["wrong"]]
    row = []
    for kind in ("none", "wrong"):
        queries = [
            Example(zoo.scene_words.QUESTIONS["exists"].format(word), "no", (scene.image,))
            for word, scene in zip(words, sets[kind], strict=True)
        ]
        row.append((judge.margins(queries) > 0).tolist())
    results["wrong word yes"] = [sum(r) / n for r in row]
    print(f'| "is there a WORD?": yes | {share(row[0])} | {share(row[1])} |')
    row = [[word in said for word, said in zip(words, told[k]["said"], strict=True)] for k in ("none", "wrong")]
    results["wrong word in caption"] = [sum(r) / n for r in row]
    print(f"| the caption names WORD | {share(row[0])} | {share(row[1])} |")
    changed = [a != b for a, b in zip(told["none"]["said"], told["wrong"]["said"], strict=True)]
    results["wrong word changes"] = sum(changed) / n
    print(f"| the caption changed | | {share(changed)} |")

    title = "Right answers after demonstrations of the same question, uniform scenes without a word"
    table(title, "question", *(f"{k} shots" for k in SHOTS))
    demo = zoo.scenes("demo", 4 * n)
    for kind in ("exists", "caption", "colour", "count", "where"):
        queries = asked(plain, kind)[:n]
        pool, cells = asked(demo, kind), []
        for k in SHOTS:
            shots = [tuple(pool[(7 * i + 13 * j) % len(pool)] for j in range(k)) for i in range(len(queries))]
            cells.append(share(judge.right(queries, shots)))
        results[f"{kind} shots"] = cells
        print(f"| {kind} | " + " | ".join(cells) + " |")

    table("The same scenes, drawn larger", "drawn at", "read at", "exists, random", "things named", "where")
    for drawn, read in ((64, 64), (96, 64), (128, 64), (96, 96), (128, 128)):
        if read > 64:
            judge.read_at(read)
        part = zoo.scenes(args.split, n, side=drawn)
        said = [words.split() for words in judge.answers(asked(part, "caption"))]
        named = [name in words for words, scene in zip(said, part, strict=True) for name in scene.names]
        cells = [share(judge.right(asked(part, "exists"))), share(named), share(judge.right(asked(part, "where")))]
        results[f"drawn {drawn} read {read}"] = cells
        print(f"| {drawn} | {read} | " + " | ".join(cells) + " |", flush=True)

    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
