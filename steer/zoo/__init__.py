"""Three tiny models and pictures that ship with the package, for demos, tests and experiments.

`load()` gives a real transformers LLaVA model with 2.5 M parameters and its processor; `examples()` gives questions
about held-out pictures. `load("tiny-clip")` gives a real CLIPModel; `labelled()` gives pictures to classify with it.
`load("tiny-scenes")` gives a LLaVA that can say no and is biased as `scene_words` tells; `scenes()` draws its pictures.
Nothing is downloaded. Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer.examples import Example
from steer.zoo import _scene_words as scene_words
from steer.zoo._clip_pictures import classes, labelled, picture_sets
from steer.zoo._scene_questions import scene_negatives, scene_questions
from steer.zoo._scenes import Scene, Thing, scenes
from steer.zoo._tasks import EXISTS, HEADLINE, RULES
from steer.zoo._words import QUESTIONS, VALUES

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Scene", "Thing", "classes", "examples", "folder", "labelled", "load", "names", "picture_sets", "pictures",
    "scene_negatives", "scene_questions", "scene_words", "scenes", "tasks",
]  # fmt: skip

_HERE = Path(__file__).parent
_FOLDERS = {"tiny-vlm": "tiny_vlm", "tiny-clip": "tiny_clip", "tiny-scenes": "tiny_scenes"}
SPLITS = ("demo", "dev", "test")


def names() -> list[str]:
    """The models that ship with the package."""
    return list(_FOLDERS)


def folder(name: str = "tiny-vlm") -> Path:
    """The folder of a shipped model, as transformers' `from_pretrained` takes it."""
    if name not in _FOLDERS:
        raise ValueError(f"the zoo has no model {name!r}; it has {', '.join(_FOLDERS)}")
    return _HERE / _FOLDERS[name]


def load(name: str = "tiny-vlm") -> tuple[Any, Any]:
    """Load a shipped model: (transformers model in eval mode and float32 on the CPU, its processor)."""
    import torch
    from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

    path = folder(name)
    auto = AutoModel if name == "tiny-clip" else AutoModelForImageTextToText
    model = auto.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(path)


@lru_cache
def _all_pictures() -> list[tuple[Image, dict[str, str]]]:
    """Every shipped picture with its labels, cut out of the contact sheet."""
    from PIL import Image

    index = json.loads((_HERE / "pictures" / "labels.json").read_text())
    sheet = Image.open(_HERE / "pictures" / "sheet.png").convert("RGB")
    side, across = index["side"], index["across"]
    found = []
    for i, row in enumerate(index["pictures"]):
        labels = dict(zip(index["columns"], row, strict=True))
        x, y = i % across * side, i // across * side
        found.append((sheet.crop((x, y, x + side, y + side)), labels))
    return found


def pictures(split: str = "test") -> list[tuple[Image, dict[str, str]]]:
    """The shipped pictures of one split ("demo", "dev" or "test"; disjoint): 48 x 48 RGB images with their labels.

    Labels have the keys object, colour, count, position, size, style and kind.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    return [
        (image, {k: v for k, v in labels.items() if k != "split"})
        for image, labels in _all_pictures()
        if labels["split"] == split
    ]


def tasks() -> dict[str, dict[str, Any]]:
    """Every task by name: what is `about`, its `split` ("trained" or "held-out"), its `question`, if it is `headline`.

    Tasks named "plain:..." say in words what they ask. The others ask "?", and only demonstrations tell the task.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"about": r.about, "split": r.split, "question": r.question, "headline": name in HEADLINE}
        for name, r in RULES.items()
    }
    about = "yes if the object in the question is in the picture, else no"
    found[EXISTS] = {"about": about, "split": "trained", "question": QUESTIONS["exists"][0], "headline": False}
    return found


def examples(task: str, split: str = "test", n: int | None = None, seed: int = 0) -> list[Example]:
    """Up to n examples of a task on distinct pictures of one split, in a seeded random order; n=None gives all.

    A task with two sides (a condition, or yes and no) is balanced as far as the pictures allow, so n=None can give
    fewer examples than the split has pictures. Take demonstrations from "demo" and queries from "dev" or "test".
    """
    if task != EXISTS and task not in RULES:
        raise ValueError(f"no task {task!r}; there are {', '.join(tasks())}")
    rng = random.Random(f"{task} {split} {seed}")
    pool = pictures(split)
    rng.shuffle(pool)
    if task == EXISTS:
        found = [_exists(image, y, i % 2 == 0, rng) for i, (image, y) in enumerate(pool[:n])]
        rng.shuffle(found)
        return found
    rule = RULES[task]
    if rule.test:
        attribute, value = rule.test
        sides = [[p for p in pool if p[1][attribute] == value], [p for p in pool if p[1][attribute] != value]]
        each = min(map(len, sides)) if n is None else (n + 1) // 2
        pool = sides[0][:each] + sides[1][:each]
        rng.shuffle(pool)
    return [Example(rule.question, rule.answer(y), (image,)) for image, y in pool[:n]]


def _exists(image: Image, labels: dict[str, str], present: bool, rng: random.Random) -> Example:
    """Ask for an object that is there, or for one that is not."""
    asked = labels["object"]
    if not present:
        asked = rng.choice([name for name in VALUES["object"] if name != asked])
    return Example(QUESTIONS["exists"][0].format(asked), "yes" if present else "no", (image,))
