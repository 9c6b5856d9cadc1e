"""What is compared, fixed before the runs: sets, classes, budget, hand-written texts, and the order of the fits.

The methods are in rows.py, the claims in claims.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rows import ADAPTERS, COCOOP, COOP16, METHODS, NO_NEW, ROWS, SHUFFLED, SLOW, SMALL_ROWS, SPECIFIC

SETS = ("food", "animals", "objects", "travel", "activities", "smileys", "digits")
ONE_STYLE = ("digits",)
OTHER_STYLE = "noto-v1"
MANY = 16  # shots of everything but the few-shot rows
TEST, VAL = 20, 16  # pictures a class

BATCH = 16
OPTIONS = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "schedule": "linear", "warmup_ratio": 0.1}
TUNING_SETS, TUNING_SEED = ("food", "travel"), 100

KINDS = {
    "food": "food", "animals": "animal", "objects": "object", "travel": "travel", "activities": "activity",
    "smileys": "smiley", "digits": "number",
}  # fmt: skip
A_PHOTO = "a photo of a {}."
TEMPLATES = (
    A_PHOTO, "a picture of a {}.", "an image of a {}.", "a drawing of a {}.", "an emoji of a {}.", "an icon of a {}.",
    "a cartoon {}.", "this is a {}.", "a {}.", "{}.", "a good photo of a {}.", "a photo of a {}, a type of KIND.",
)  # fmt: skip
SENTENCES = (
    "a photo of a {}, a type of KIND.", "a KIND called {}.", "there is a {} in the picture.", "here is the {}.",
    "KIND: {}.", "a picture of a {}, a type of KIND.", "one {}.", "a {}, a kind of KIND.", "this is a photo of a {}.",
    "an image of the {}.",
)  # fmt: skip
"""In the place of what a language model wrote for CoPrompt's authors: paraphrases, the same for all classes."""


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        sets, rows, seeds, shots: of the comparison; the rows here are methods, controls come with them.
        classes: of each set of emoji; digits have 10.
        steps: of every fit, nearly.
        full: whether tuning and controls are run.
    """

    sets: tuple[str, ...] = SETS
    rows: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    classes: int = 20
    steps: int = 100
    full: bool = True

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Scale:
        """From what `plain` gave, read back from JSON."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def epochs(self, examples: int) -> int:
        """As many as make about `steps` steps; the last batch of an epoch may be smaller."""
        return max(1, round(self.steps / math.ceil(examples / BATCH)))


SMALL = Scale(sets=("food",), rows=SMALL_ROWS, seeds=(0,), shots=(1, MANY), classes=5, steps=10, full=False)


@dataclass(frozen=True)
class Job:
    """One fit and its tests.

    Attributes:
        kind: "tune", "base-new", "few-shot" or "control".
        set, row, seed: of what.
        shots: pictures a class.
        value: in "tune", of the rate or alpha.
    """

    kind: str
    set: str
    row: str
    seed: int
    shots: int = MANY
    value: float | None = None

    @property
    def key(self) -> str:
        """As in the records."""
        parts = [self.kind, self.set, self.row, str(self.shots), str(self.seed)]
        return "/".join(parts if self.value is None else [*parts, f"{self.value:g}"])


def jobs(scale: Scale) -> Iterator[list[Job]]:
    """Everything, in the order in which it is run."""
    if scale.full:
        yield tuning()
    yield base_new(scale)
    ordered = [shots for shots in (MANY, 1, 4, 2, 8) if shots in scale.shots]
    # What claims need comes first, and CoCoOp, as slow as all others together, last.
    claimed, fast = (COOP16, SPECIFIC), [row for row in scale.rows if row not in (COOP16, SPECIFIC, COCOOP, *SLOW)]
    yield from (few_shot(scale, shots, claimed) for shots in ordered)
    if scale.full:
        yield controls(scale)
    yield few_shot(scale, MANY, (*fast, *SLOW))
    yield from (few_shot(scale, shots, rows) for rows in (fast, SLOW) for shots in ordered[1:])
    yield from (few_shot(scale, shots, (COCOOP,)) for shots in ordered)


def tuning() -> list[Job]:
    """Each method's tries, on classes that are not reported."""
    return [
        Job("tune", name, row.name, TUNING_SEED, value=value)
        for row in ROWS.values()
        for value in row.tries
        for name in TUNING_SETS
    ]


def base_new(scale: Scale) -> list[Job]:
    """Fitted on the base half of each set, asked about both."""
    rows = [row for row in scale.rows if row not in NO_NEW]
    return [Job("base-new", name, row, seed) for row in rows for seed in scale.seeds for name in scale.sets]


def few_shot(scale: Scale, shots: int, chosen: Sequence[str]) -> list[Job]:
    """Some rows on all classes of each set; hand-written prompts do not depend on shots and are asked once."""
    rows = [row for row in scale.rows if row in chosen and (shots == MANY or ROWS[row].learns)]
    return [Job("few-shot", name, row, seed, shots) for row in rows for seed in scale.seeds for name in scale.sets]


def controls(scale: Scale) -> list[Job]:
    """Labels shuffled, on every set; and what CoPrompt is without its weight, on two."""
    shuffled = [Job("control", name, SHUFFLED, seed) for seed in scale.seeds for name in scale.sets]
    return shuffled + [Job("control", name, ADAPTERS, seed) for seed in scale.seeds for name in TUNING_SETS]


def drawn(name: str, known: list[str], count: int, tuning: bool = False) -> list[str]:
    """The classes of a set, drawn once, sorted; `tuning` gives as many others. A set that is no larger comes whole."""
    if len(known) <= count:
        return sorted(known)
    order = random.Random(f"classes of {name}").sample(sorted(known), 2 * count)
    return sorted(order[count:] if tuning else order[:count])


def halves(classes: list[str]) -> tuple[list[str], list[str]]:
    """Base and new, as the authors split: the first half of the sorted names, rounded up, and the rest."""
    middle = math.ceil(len(classes) / 2)
    return classes[:middle], classes[middle:]


def written(template: str, name: str) -> str:
    """A template of a set: its word for the kind filled in."""
    return template.replace("KIND", KINDS[name])
