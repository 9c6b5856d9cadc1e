"""The methods of the comparison, each with the fields that differ from its preset and what is tried for it on val."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RATES = (0.02, 0.1, 0.5)
ALPHAS = (1.0, 3.0, 10.0)  # Tip-Adapter has no rate; its three tries are of how much votes count


@dataclass(frozen=True)
class Row:
    """One method of the comparison.

    Attributes:
        name: in the tables.
        preset: the method's registered name.
        config: its fields where they differ from the preset's.
        holds: which hand-written prompts it is given: the "best" on val, "all" of them, or the "photo".
        augment: how training pictures are perturbed; None for the method's own.
        control: not a method, but what one is checked by.
    """

    name: str
    preset: str
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    holds: str = "best"
    augment: str | None = None
    control: bool = False

    @property
    def learns(self) -> bool:
        """Whether it sees training pictures."""
        return self.preset != "zero_shot"

    @property
    def by_gradient(self) -> bool:
        """Whether it is fitted by gradient."""
        return self.learns and self.preset != "tip_adapter"

    @property
    def tries(self) -> tuple[float, ...]:
        """What is chosen among on val: a rate, or Tip-Adapter's alpha; none for hand-written prompts and controls."""
        if not self.learns or self.control:
            return ()
        return RATES if self.by_gradient else ALPHAS


# tiny-clip has 4 layers in each tower; MaPLe's and PromptSRC's authors take 9 of 12, the others all
_ALL = {"text_depth": 4, "vision_depth": 4}
_MOST = {"text_depth": 3, "vision_depth": 3}

ZERO, PHOTO, ENSEMBLE = "zero_shot", "zero_shot, a photo of a", "zero_shot, mean of all"
COOP, COOP16, SPECIFIC = "coop", "coop, M=16", "coop, class-specific"
COCOOP, MAPLE, COPROMPT, UNHELD = "cocoop", "maple", "coprompt", "coprompt, weight 0"
TIP, KGCOOP, PROMPTSRC = "tip_adapter", "kgcoop", "promptsrc"
SHUFFLED, ADAPTERS = "coop, labels shuffled", "maple with adapters"

ROWS = {
    row.name: row
    for row in (
        Row(ZERO, "zero_shot"),
        Row(PHOTO, "zero_shot", holds="photo"),
        Row(ENSEMBLE, "zero_shot", holds="all"),
        Row(TIP, "tip_adapter"),
        Row("clip_adapter", "clip_adapter"),
        Row(COOP, "coop", {"context": 4, "init": "a photo of a"}),
        Row(COOP16, "coop"),
        Row(SPECIFIC, "coop", {"class_specific": True}),
        Row(KGCOOP, "kgcoop"),
        Row("prograd", "prograd"),
        Row(COCOOP, "cocoop"),
        Row(MAPLE, "maple", _MOST),
        Row(COPROMPT, "coprompt", _ALL),
        Row(UNHELD, "coprompt", {**_ALL, "weight": 0.0}),
        Row(PROMPTSRC, "promptsrc", _MOST, holds="all"),
        Row("ivlp", "ivlp", _ALL),
        Row("vpt", "vpt", {"vision_depth": 4}),
        Row(SHUFFLED, "coop", control=True),
        Row(
            ADAPTERS,
            "maple",
            {**_ALL, "context": 4, "image_adapter": 0.1, "text_adapter": 0.2},
            augment="rand",
            control=True,
        ),
    )
}
LIKE = {SHUFFLED: COOP16, ADAPTERS: UNHELD}
"""Controls run at the rate of what they are compared with."""
METHODS = tuple(name for name, row in ROWS.items() if not row.control)
SMALL_ROWS = (ZERO, TIP, COOP)
SLOW = (MAPLE, COPROMPT, UNHELD, PROMPTSRC, "ivlp", "vpt")  # the vision tower runs in every step
NO_NEW = (SPECIFIC,)  # has nothing for classes that it was not fitted on
