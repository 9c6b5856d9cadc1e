"""What is compared, fixed before anything is run: rows, sizes, and what each part measures. Claims are in claims.py.

Every row runs as its class has it, but for windows of 8 tokens (parts are short). Held-out questions decide nothing
here. What EMLoC's own defaults were chosen by is said on the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import steer

SEEDS = (0, 1, 2)  # other demonstrations in another order, other questions
KEEPS = (0.1, 0.2, 0.3, 0.5, 0.7)
DELTAS = (0.005, 0.02, 0.05)
DELTA = 0.02  # of the ablation, of the row with a vector, and where time and peak memory are measured

WINDOW = {"window": 8}
SCORERS: dict[str, dict[str, Any]] = {
    "random": {},
    "streaming_llm": {},
    "knorm": {},
    "keydiff": {},
    "snapkv": WINDOW,
    "tova": {},
    "observed_attention": {},
    "expected_attention": {},
    "pyramidkv": WINDOW,
    "ada_kv": {"options": WINDOW},
    "fastv": {},
}
FULL, ZERO = "full", "zero-shot"
PUBLISHED, OURS, WHOLE = "emloc-published", "emloc", "emloc-end-to-end"
VECTOR, BOTH = "live", "emloc+live"
ABLATION: dict[str, dict[str, Any]] = {
    "emloc-with-pooling": {"kernel_size": 5},
    "emloc-without-sinks": {"sinks": 0},
    "emloc-with-special-tokens": {"special": True},
    "emloc-without-answer-cap": {"answer_share": None},
    "emloc-without-memory-in-softmax": {"memory_in_softmax": False},
    "emloc-without-bisection": {"bisect": False},
    "emloc-without-schedule": {"schedule": "constant"},
    "emloc-with-padding-observing": {"padding_observes": True},
}
"""Ours with one thing changed: a mend of the published algorithm turned off, or special tokens always kept."""


@dataclass(frozen=True)
class Row:
    """One memory of the comparison.

    Attributes:
        family: in the tables; "emloc-without-..." are the ablation.
        knob: "keep" (a share of the tokens) or "delta" (a bound on the divergence).
        value: of the knob.
        options: of the method beyond that.
    """

    family: str
    knob: str
    value: float
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """As in the records."""
        return f"{self.family}:{self.knob}={self.value:g}"

    @property
    def searches(self) -> bool:
        """Whether it is EMLoC under a bound, published or ours."""
        return self.knob == "delta"

    def method(self) -> Any:
        """The method, configured."""
        if not self.family.startswith("emloc"):
            return steer.create(self.family, keep=self.value, **self.options)
        from steer_memory.emloc import EMLoC

        aim = {"budget": self.value} if self.knob == "keep" else {"max_divergence": self.value}
        make = EMLoC.published if self.family == PUBLISHED else EMLoC
        return make(**aim, **self.options)


def bounded(deltas: tuple[float, ...] = DELTAS, **options: Any) -> list[Row]:
    """EMLoC as published, ours, and ours with the bound held from end to end."""
    families = {PUBLISHED: {}, OURS: {}, WHOLE: {"end_to_end": True}}
    return [Row(name, "delta", delta, {**more, **options}) for delta in deltas for name, more in families.items()]


def shares(keeps: tuple[float, ...], pictures: bool, **options: Any) -> list[Row]:
    """Every scorer, and EMLoC's score with equal shares in all layers, at these shares."""
    known = {name: more for name, more in SCORERS.items() if pictures or name != "fastv"}
    families = {PUBLISHED: options, OURS: options, **known}
    return [Row(name, "keep", keep, more) for keep in keeps for name, more in families.items()]


def ablation() -> list[Row]:
    """Ours with one thing changed."""
    return [Row(name, "delta", DELTA, changed) for name, changed in ABLATION.items()]
