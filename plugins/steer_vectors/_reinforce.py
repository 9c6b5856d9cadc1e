"""A set of heads learned by trial: independent Bernoulli variables under a policy gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

Losses = Callable[[int, torch.Tensor], torch.Tensor]
"""(step, masks (S, P) bool) -> losses (S,) of each mask on the query of that step."""

FLOOR = 1e-3
"""Probabilities keep this far from 0 and 1; also added to the losses' spread, as the authors do both."""


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """P = clamp(sigmoid(logits), 1e-3, 1 - 1e-3)."""
    return logits.sigmoid().clamp(FLOOR, 1 - FLOOR)


def policy_gradient(masks: torch.Tensor, losses: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The gradient of -sum_s A_s log p(mask_s), (P,).

    A_s = (mean - loss_s) / (std + 1e-3) with the unbiased standard deviation; d/dlogit log p(m) = m - p, and zero where
    p is clamped.

    Args:
        masks: (S, P), 0 or 1.
        losses: (S,).
        logits: (P,).
    """
    advantages = (losses.mean() - losses) / (losses.std() + FLOOR)
    p = probabilities(logits)
    free = (logits.sigmoid() - p).abs() == 0
    return -(advantages.unsqueeze(-1) * (masks - p)).sum(0) * free


def learn(
    count: int, steps: Iterable[int], losses: Losses, *, samples: int, lr: float, generator: torch.Generator
) -> torch.Tensor:
    """Logits of `count` Bernoulli variables, (P,), fp32, from -1 by Adam.

    Args:
        count: how many variables.
        steps: of the optimisation, e.g. a range in a progress bar.
        losses: what each sampled set costs.
        samples: sets sampled in a step.
        lr: of Adam.
        generator: of the samples, on the CPU.
    """
    logits = torch.full((count,), -1.0)
    optimizer = torch.optim.Adam([logits], lr=lr)
    for step in steps:
        masks = torch.bernoulli(probabilities(logits).expand(samples, -1), generator=generator)
        logits.grad = policy_gradient(masks, losses(step, masks.bool()), logits)
        optimizer.step()
    return logits
