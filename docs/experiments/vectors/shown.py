"""(A) Pictures: the tasks of tiny-vlm, single and mixed."""

from __future__ import annotations

from dataclasses import replace

import steer
from steer import zoo

SINGLE = ("position",)  # told by demonstrations alone; the model learns them from context
HELD_OUT = ("if-food", "if-big", "is-blue", "is-food", "relabel-position", "mirror-position")
CONDITIONAL = ("if-animal", "if-food", "if-big")  # the picture decides which attribute is asked
MIXTURE = "mixture"
# A word that the model knows as an answer only stands for a task: nothing but the query's form tells tasks apart.
CUES = {"colour": "dax", "count": "wug", "position": "fep", "size": "zim", "style": "lorp", "kind": "tiv"}
FIRST = (MIXTURE, "if-big", *SINGLE, "if-food", "if-animal")
TASKS = (*FIRST, *(task for task in HELD_OUT if task not in FIRST))


def examples(task: str, split: str, n: int, seed: int) -> list[steer.Example]:
    """n examples of one split ("demo", "dev" or "test") or as many as there are; of a mixture n over all its tasks."""
    if task != MIXTURE:
        return zoo.examples(task, split, n, seed)
    each = -(-n // len(CUES))
    parts = [[_cued(one, cue) for one in zoo.examples(part, split, each, seed)] for part, cue in CUES.items()]
    return [one for row in zip(*parts, strict=True) for one in row][:n]


def part_of(example: steer.Example) -> str:
    """Which task of a mixture an example is of; the same for all where there is one task."""
    return example.question


def _cued(example: steer.Example, cue: str) -> steer.Example:
    return replace(example, question=f"{cue} {example.question}")
