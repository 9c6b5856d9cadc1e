"""Directions and thresholds that tell two sets of hidden states apart, and conditions made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, normalize

__all__ = [
    "DIRECTIONS", "SIMILARITIES", "Condition", "Cut", "best_cut", "cast", "cosine", "f1", "find", "held_out",
    "mean_difference", "principal",
]  # fmt: skip


def mean_difference(act: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """From the mean of `rest` (M, D) to that of `act` (N, D), of unit length: (D,) in fp64."""
    return normalize(act.double().mean(0) - rest.double().mean(0), dim=0)


def principal(act: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """First principal component (D,), in fp64, of both sets about the middle of their means; `act` lies on its side."""
    middle = (act.double().mean(0) + rest.double().mean(0)) / 2
    both = torch.cat([act.double() - middle, rest.double() - middle])
    component = torch.linalg.svd(both, full_matrices=False).Vh[0]
    return component * torch.sign(component @ (act.double().mean(0) - middle))


def cosine(states: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """cos(h, c) of states (B, D) and a direction (D,): (B,)."""
    return cosine_similarity(states, direction.to(states), dim=-1)


def cast(states: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """cos(h, tanh(P h)) with P = c c^T / (c^T c) (CAST, arXiv:2409.05907): (B,).

    h and -h give the same: it tells how much of h lies along c (where tanh is straight, |<h, c>| / (||h|| ||c||)), and
    hardly on which side.
    """
    c = normalize(direction.to(states), dim=0)
    return cosine_similarity(states, torch.tanh((states @ c).unsqueeze(-1) * c), dim=-1)


@dataclass(frozen=True)
class Cut:
    """A threshold and how good it is.

    Attributes:
        at: the threshold.
        value: of what it was chosen by.
        margin: how far apart the scores on its two sides are, as a share of all scores' range.
    """

    at: float
    value: float
    margin: float

    @property
    def rank(self) -> tuple[float, float]:
        """What cuts are compared by: the highest is best."""
        return self.value, self.margin


def best_cut(scores: torch.Tensor, value: Callable[[torch.Tensor], float]) -> Cut:
    """The threshold with the highest value; of equals the one between the scores that lie farthest apart.

    Args:
        scores: (N,).
        value: of the choice `scores > threshold`, bool (N,).
    """
    steps = scores.double().unique()
    gaps = torch.cat([steps.new_zeros(1), steps.diff(), steps.new_zeros(1)])
    places = torch.cat([steps[:1] - 1, (steps[1:] + steps[:-1]) / 2, steps[-1:] + 1])
    spread = float(steps[-1] - steps[0]) or 1.0
    found = [
        Cut(at, value(scores.double() > at), gap / spread)
        for at, gap in zip(places.tolist(), gaps.tolist(), strict=True)
    ]
    return max(found, key=lambda cut: cut.rank)


def f1(chosen: torch.Tensor, wanted: torch.Tensor) -> float:
    """2 TP / (2 TP + FP + FN) of bool tensors; 0 where nothing is chosen and nothing wanted."""
    right = int((chosen & wanted).sum())
    return 2 * right / max(1, int(chosen.sum()) + int(wanted.sum()))


def held_out(groups: torch.Tensor, seed: int) -> torch.Tensor:
    """Bool (N,): a quarter of each group, at least one of it, is held out at random."""
    held = torch.zeros(len(groups), dtype=torch.bool)
    for group in groups.unique().tolist():
        members = torch.nonzero(groups == group).flatten()
        mixed = members[torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))]
        held[mixed[: max(1, round(len(members) / 4))]] = True
    return held


DIRECTIONS = {"principal": principal, "mean_difference": mean_difference}
"""From states (N, D) where something should happen and (M, D) where not to a direction (D,)."""

SIMILARITIES = {"cast": cast, "cosine": cosine}
"""From states (B, D) and a direction (D,) to scores (B,)."""


@dataclass(frozen=True, eq=False)
class Condition:
    """Whether states lie far enough along a direction.

    Attributes:
        direction: (D,).
        cut: the threshold, and how good it was where it was chosen.
        below: it is met at or below the threshold, not above it.
        similarity: one of `SIMILARITIES`.
    """

    direction: torch.Tensor
    cut: Cut
    below: bool
    similarity: str

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """States (B, D) -> 1 where the condition is met and 0 where not, fp32 (B, 1): strengths for a `Latch`."""
        score = SIMILARITIES[self.similarity](states, self.direction)
        return (score <= self.cut.at if self.below else score > self.cut.at).float().unsqueeze(-1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a method keeps of it, fp32: "direction" (D,), and as one number each "threshold", "below", "f1"."""
        numbers = {"threshold": self.cut.at, "below": self.below, "f1": self.cut.value}
        return {"direction": self.direction.float(), **{k: torch.tensor(float(v)) for k, v in numbers.items()}}


def find(
    states: Sequence[torch.Tensor],
    wanted: torch.Tensor,
    *,
    seed: int = 0,
    similarity: str = "cast",
    direction: str = "principal",
    above: float | None = None,
) -> tuple[int, Condition]:
    """The condition that tells two sets of prompts apart best, by the F1 of its decision on a held-out quarter of both.

    Args:
        states: of the same N prompts at some places, such as layers, each (N, D).
        wanted: bool (N,), whether the condition should be met.
        seed: of what is held out.
        similarity: one of `SIMILARITIES`.
        direction: one of `DIRECTIONS`; made from what is not held out.
        above: a threshold to be above; None chooses threshold and side.

    Returns:
        The number of the best place, of equals the one with the widest margin, of equals the first; and its condition.
    """
    held = held_out(wanted, seed)

    def at(rows: torch.Tensor) -> Condition:
        way = DIRECTIONS[direction](rows[wanted & ~held], rows[~wanted & ~held])
        scores, right = SIMILARITIES[similarity](rows, way.float())[held], wanted[held]
        if above is not None:
            return Condition(way, Cut(above, f1(scores > above, right), 0.0), False, similarity)
        over = best_cut(scores, lambda chosen: f1(chosen, right))
        under = best_cut(scores, lambda chosen: f1(~chosen, right))
        below = under.rank > over.rank
        return Condition(way, under if below else over, below, similarity)

    found = [at(rows) for rows in states]
    best = max(range(len(found)), key=lambda i: (found[i].cut.rank, -i))
    return best, found[best]
