"""Scenes turned into the questions of each problem, for dev and for test, one set for each seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image
from protocol import FIT

from steer import zoo
from steer.examples import Example
from steer.suites import Question

GREY = Image.new("RGB", (64, 64), (128, 128, 128))
NEGATIVES = ("random", "popular", "adversarial")
SIDE = 96  # pixels of the larger pictures; training saw 64
ORDINARY = ("colour", "count", "where", "say")


@dataclass(frozen=True)
class Data:
    """Everything that is asked of one split under one seed. Each list is made when it is first wanted."""

    split: str
    seed: int
    scenes: int

    def _scenes(self, **more: object) -> list:
        return zoo.scenes(self.split, self.scenes, self.seed, **more)

    @cached_property
    def pope(self) -> list[Question]:
        """Is there such an object? Three kinds of objects that are not there, each against what is there."""
        return [one for kind in NEGATIVES for one in _exists(self._scenes(), kind)]

    @cached_property
    def blank(self) -> list[Question]:
        """The same question about every object with a grey picture: what the words alone make the model say."""
        return [
            Question(
                f"blank/{name}", "blank", Example(zoo.scene_words.QUESTIONS["exists"].format(name), "no", (GREY,)), name
            )
            for name in zoo.scene_words.OBJECTS
        ]

    @cached_property
    def captions(self) -> list[Question]:
        """What is in the picture?"""
        return _asked(self._scenes(), "caption", "captions")

    @cached_property
    def ordinary(self) -> list[Question]:
        """Colour, number, place and print: what no method here is meant to change."""
        printed = self._scenes(word="law")
        return [one for kind in ORDINARY for one in _asked(printed, kind, kind)]

    @cached_property
    def attacked(self) -> list[Question]:
        """The object whose word is printed on the picture, which is not there, and one that is."""
        return _attack(self._scenes(word="wrong"), self._scenes(word="wrong"), "attacked")

    @cached_property
    def unattacked(self) -> list[Question]:
        """The same questions about the same scenes without the print."""
        return _attack(self._scenes(), self._scenes(word="wrong"), "unattacked")

    @cached_property
    def attacked_captions(self) -> list[Question]:
        """Captions of pictures with a wrong word."""
        return _asked(self._scenes(word="wrong"), "caption", "attacked captions")

    @cached_property
    def large(self) -> list[Question]:
        """The adversarial questions on the same scenes drawn half as large again."""
        return _exists(self._scenes(side=SIDE), "adversarial", "large")


def training(seed: int, printed: bool) -> tuple[list[Example], list[Example]]:
    """Examples to fit on: as many that are answered yes as no; and the same with the wrong answer.

    Args:
        seed: of the scenes.
        printed: scenes with a wrong word, about which is asked; else without a word, and negatives of all kinds.
    """
    if printed:
        drawn = zoo.scenes("demo", FIT // 2, seed, word="wrong")
        found = [question.example for question in _attack(drawn, drawn, "")]
    else:
        drawn = zoo.scenes("demo", FIT, seed)
        kinds = [NEGATIVES[i % 3] for i in range(FIT)]
        pairs = [
            zoo.scene_questions(scene, "exists", kind, i)
            for i, (scene, kind) in enumerate(zip(drawn, kinds, strict=True))
        ]
        # in turn the first that is there and the first that is not
        found = [next(one for one in some if one.answer == ("yes", "no")[i % 2]) for i, some in enumerate(pairs)]
    wrong = {"yes": "no", "no": "yes"}
    return found, [replace(one, answer=wrong[one.answer]) for one in found]


def others(seed: int) -> list[Example]:
    """Ordinary questions, for methods that must know when not to act."""
    drawn = zoo.scenes("demo", FIT // 2, seed + 1000, word="law")
    return [zoo.scene_questions(scene, ORDINARY[i % len(ORDINARY)])[0] for i, scene in enumerate(drawn)]


def _exists(scenes: list, kind: str, group: str = "") -> list[Question]:
    return [
        Question(f"{group or kind}/{i}/{j}", group or kind, example, str(i))
        for i, scene in enumerate(scenes)
        for j, example in enumerate(zoo.scene_questions(scene, "exists", kind))
    ]


def _asked(scenes: list, kind: str, group: str) -> list[Question]:
    return [
        Question(f"{group}/{i}", group, zoo.scene_questions(scene, kind)[0], str(i), scene)
        for i, scene in enumerate(scenes)
    ]


def _attack(shown: list, printed: list, group: str) -> list[Question]:
    ask = zoo.scene_words.QUESTIONS["exists"].format
    found = []
    for i, (scene, named) in enumerate(zip(shown, printed, strict=True)):
        for word, answer in ((named.word, "no"), (named.names[0], "yes")):
            example = Example(ask(word), answer, (scene.image,))
            found.append(Question(f"{group}/{i}/{answer}", group, example, str(i), scene))
    return found
