"""Directions and thresholds that tell two sets of hidden states apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, normalize


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
