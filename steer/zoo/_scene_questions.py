"""Questions about scenes, and POPE's three kinds of objects that are not there."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from steer.examples import Example
from steer.zoo._clip_pictures import _choose
from steer.zoo._scene_words import COUNTS, FREQUENCY, NEGATIVES, NOTHING, OBJECTS, PARTNERS, POPULAR, QUESTIONS

if TYPE_CHECKING:
    from steer.zoo._scenes import Scene


def scene_negatives(scene: Scene, kind: str = "random", n: int = 1, seed: int = 0) -> list[str]:
    """Up to n different objects that are not in a scene, of one of the three kinds of POPE.

    "random": any, at random; "popular": the most frequent of training first, from POPULAR alone; "adversarial": the
    partners of what is there first, then by how often they stand beside it in training, which is by frequency.
    Objects that are equally frequent come in random order. The same scene and seed give the same objects, and fewer
    are the first of more. Raises ValueError for a kind that is not there.
    """
    _choose("kind of negative", kind, NEGATIVES)
    rng = random.Random(f"{kind} {' '.join(scene.names)} {scene.colour} {seed}")
    absent = [name for name in OBJECTS if name not in scene.names]
    rng.shuffle(absent)
    if kind == "popular":
        absent = [name for name in absent if name in POPULAR]
    if kind != "random":
        absent.sort(key=FREQUENCY.__getitem__, reverse=True)
    if kind == "adversarial":
        absent.sort(key=lambda name: PARTNERS.get(name) not in scene.names)
    return absent[:n]


def scene_questions(scene: Scene, kind: str, negatives: str = "random", seed: int = 0) -> list[Example]:
    """Questions of one kind about a scene: Example(question, answer, images=(picture,)).

    "caption", "colour", "count" and "say" give one. "where" gives one for each thing. "exists" gives "yes" for each
    thing and "no" for as many `negatives` (see `scene_negatives`). Raises ValueError for a kind that is not there.
    """
    _choose("kind of question", kind, QUESTIONS)
    _choose("kind of negative", negatives, NEGATIVES)
    pairs: list[tuple[str, str]]  # what is put in the question, and the answer
    if kind == "exists":
        absent = scene_negatives(scene, negatives, len(scene.things), seed)
        pairs = [(name, "yes") for name in scene.names] + [(name, "no") for name in absent]
    elif kind == "where":
        pairs = [(thing.name, thing.cell) for thing in scene.things]
    else:
        answers = {
            "caption": " ".join(scene.names),
            "colour": scene.colour,
            "count": COUNTS[len(scene.things) - 1],
            "say": scene.word or NOTHING,
        }
        pairs = [("", answers[kind])]
    return [Example(QUESTIONS[kind].format(name), answer, (scene.image,)) for name, answer in pairs]
