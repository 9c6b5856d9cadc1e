"""What is compared, fixed before anything is run: sizes, grids, rows, claims.

Every row gets eight tries on dev under seed 0 and is judged there by accuracy, once for objects that are not there
(POPE's three kinds together) and once for printed words. A try that answers one ordinary question in a hundred less
than the model alone is out; if none is left, the row is left at the model alone and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

FIT = 192  # examples that a fit sees: scenes of the split "demo"
LEARNING_RATES = (1e-3, 5e-3, 2e-2, 5e-2)
DAMAGE = 0.01  # of ordinary questions, on dev
RISK = 0.05  # what an abstention threshold is fitted for


@dataclass(frozen=True)
class Sizes:
    """Scenes on dev and test, steps of a fit, and the seeds of scenes, fits and noise."""

    dev: int = 80
    test: int = 120
    steps: int = 120
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One row of the tables.

    Attributes:
        name: in the tables, and of its maker in makers.py.
        kind: "control" (of words or numbers), "attention", "decoding", "heads", "residual", "fitted", "library", or
            "told" (of the place of the printed word).
        choices: for each option the values to try; eight in all.
        aims: what it is tuned for.
    """

    name: str
    kind: str
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    aims: tuple[str, ...] = ("objects", "print")

    def tries(self) -> list[dict[str, Any]]:
        """Every combination of the choices."""
        return [dict(zip(self.choices, values, strict=True)) for values in product(*self.choices.values())]


ROWS = (
    Row(
        "prompt",
        "control",
        {"way": ("twice", "caption first", *(f"{n} {kind}" for kind in ("mixed", "no only") for n in (1, 2, 4)))},
    ),
    Row("image_focus", "attention", {"beta": (0.25, 0.5, 1.0, 2.0), "where": ("answer", "all")}),
    Row("pasta", "attention", {"alpha": (0.01, 0.1, 0.3, 0.6), "heads": ("all", "look")}),
    Row(
        "pasta, place known",
        "told",
        {"alpha": (0.01, 0.1, 0.3, 0.6), "heads": ("all", "look")},
        aims=("print",),
    ),
    Row("pai", "attention", {"alpha": (0.1, 0.2, 0.5, 1.0), "gamma": (1.1, 1.5)}),
    Row("vcd", "decoding", {"a": (0.25, 0.5, 1.0, 2.0), "step": (300, 500)}),
    Row("head_mask", "heads", {"k": (1, 2, 4, 6), "by": ("ablation", "attention_text")}),
    Row("head_scale", "heads", {"k": (2, 6), "factor": (0.5, 1.5, 2.0, 3.0)}),
    Row("iti", "heads", {"k": (4, 12), "alpha": (1.0, 3.0, 6.0, 12.0)}),
    Row("cast", "residual", {"layers": ((2,), (3,)), "strength": (0.5, 1.0, 2.0, 4.0)}),
    Row("live", "fitted", {"lr": LEARNING_RATES, "alpha": (0.1, 1.0)}),
    Row("hyper_icl", "fitted", {"lr": LEARNING_RATES, "losses": ("anchored", "ce")}),
    Row("mitigv vcd", "library", {"alpha": (0.25, 0.5, 1.0, 2.0), "step": (300, 500)}),
    Row("mitigv pai", "library", {"alpha": (0.1, 0.2, 0.5, 1.0), "gamma": (1.1, 1.5)}),
)


@dataclass(frozen=True)
class Claim:
    """Something stated before it was measured.

    Attributes:
        key: which test of claims.py decides it.
        text: what is claimed.
    """

    key: str
    text: str


CLAIMS = (
    Claim("bias", "Unsteered, the model is less often right on adversarial negatives than on random ones."),
    Claim(
        "free", "A method without a fit (image_focus, pasta, pai, vcd) is more often right on adversarial negatives."
    ),
    Claim(
        "fitted", "A fitted method (iti, cast, live, hyper_icl) is more often right there than the best without a fit."
    ),
    Claim("threshold", "A threshold on the probability of yes, fitted on dev, does no worse there than any method."),
    Claim("chair", "The method that is best at POPE also names fewer absent objects in captions."),
    Claim("attack", "A method that is tuned for it makes printed words mislead less than in the model alone."),
    Claim("cost", "image_focus costs at most 1.05 times the model alone for each token, vcd about twice."),
    Claim("library", "mitigv's VCD and PAI do as ours, within the interval, where both are tuned alike."),
)
