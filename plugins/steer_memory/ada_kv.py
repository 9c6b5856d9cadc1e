"""AdaKV: the heads of a layer share one budget (Feng et al., 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

import steer
from steer.errors import InterventionError
from steer.memory import Scorer, Seen
from steer.memory.scorer import places
from steer.registry import method_class


@dataclass
class AdaKV(Scorer):
    """Any scorer's scores, with a budget for each head: the best of all heads of a layer together are kept.

    Every head keeps the `safeguard` share of its own budget for its own best tokens. Heads keep different numbers, and
    what a head does not keep is freed; the layer keeps as many as it would with equal budgets.

    Source: https://arxiv.org/abs/2407.11550.

    Attributes:
        scorer: the name of the scorer.
        options: its fields, other than those that this method has itself.
        safeguard: share of a head's equal budget that it has for itself.
    """

    name: ClassVar[str] = "ada_kv"
    paper: ClassVar[str] = "https://arxiv.org/abs/2407.11550"
    summary: ClassVar[str] = "Any scorer's tokens with a budget for each head."

    scorer: str = "snapkv"
    options: dict[str, Any] = field(default_factory=dict)
    safeguard: float = 0.2
    per_head: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.safeguard <= 1:
            raise InterventionError(f"safeguard is a share between 0 and 1; got {self.safeguard!r}")
        own = {"keep": self.keep, "budget": self.budget, "sinks": self.sinks, "every": self.every}
        taken = sorted({*own, "layers", "per_head"} & set(self.options))
        if taken:
            raise InterventionError(f"{', '.join(taken)} of method {self.name!r} are its own fields, not `options`")
        cls = method_class(self.scorer)
        if not issubclass(cls, Scorer) or issubclass(cls, AdaKV):
            raise InterventionError(
                f"method {self.name!r} needs the name of a scorer, such as 'snapkv'; got {self.scorer!r}"
            )
        self._inner: Any = steer.create(self.scorer, **own, **self.options)

    def score(self, seen: Seen) -> torch.Tensor:
        """The scorer's."""
        return self._inner.score(seen)

    def count(self, seen: Seen) -> torch.Tensor:
        """The scorer's."""
        return self._inner.count(seen)

    def newest(self) -> int:
        """The scorer's."""
        return self._inner.newest()

    def observers(self) -> int:
        """The scorer's."""
        return self._inner.observers()

    def select(self, score: torch.Tensor, free: torch.Tensor, tier: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """The best of all heads together, bool (B, H_kv, S), after those that are safe in their own head."""
        safe = (count.double() * self.safeguard + 1e-6).floor().clamp(min=1)[:, None, None]
        tier = torch.maximum(tier, (places(score, free, tier) < safe).long())
        together = places(score.flatten(1), free.flatten(1), tier.flatten(1)) < count[:, None] * score.shape[1]
        return free & together.view_as(free)
