"""Linear probes on what heads say, all heads of a layer at once: how well each one tells two kinds of text apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

STEPS, HALVINGS, TOLERANCE = 100, 30, 1e-9


def logistic(x: Tensor, positive: Tensor, penalty: float = 1.0) -> Tensor:
    """Logistic regressions by Newton's method.

    Each is the argmin over w, b of penalty / 2 |w|^2 + sum_n log(1 + exp(-y_n (w x_n + b))).

    Args:
        x: (N, H, d), fp64.
        positive: bool (N,), y = 1 where it is true and -1 elsewhere.
        penalty: of the weights; the bias is free.

    Returns:
        (H, d + 1), the bias last. The problems are convex: nothing depends on where they start.
    """
    rows = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1).transpose(0, 1)
    sign = torch.where(positive, 1.0, -1.0).to(x)
    ridge = torch.full_like(rows[0, 0], penalty)
    ridge[-1] = 0.0
    w = torch.zeros(rows.shape[0], rows.shape[2], dtype=x.dtype)

    def loss(w: Tensor) -> Tensor:
        fit = softplus(-sign * (rows @ w.unsqueeze(-1)).squeeze(-1)).sum(-1)
        return fit + (ridge * w * w).sum(-1) / 2

    now = loss(w)
    for _ in range(STEPS):
        p = torch.sigmoid((rows @ w.unsqueeze(-1)).squeeze(-1))
        slope = ((p - positive.to(x)).unsqueeze(1) @ rows).squeeze(1) + ridge * w
        curve = rows.transpose(1, 2) @ ((p * (1 - p)).unsqueeze(-1) * rows) + torch.diag(ridge + 1e-12)
        step = torch.linalg.solve(curve, slope)
        scale = torch.ones_like(now)
        for _ in range(HALVINGS):
            worse = loss(w - scale.unsqueeze(-1) * step) > now + 1e-12 * now.abs()
            if not worse.any():
                break
            scale = torch.where(worse, scale / 2, scale)
        w = w - scale.unsqueeze(-1) * step
        now = loss(w)
        if float(slope.abs().max()) < TOLERANCE * max(1, len(x)):
            break
    return w


def standardised(x: Tensor, like: Tensor) -> Tensor:
    """States (N, H, d) less the mean of `like` over its rows, each number over its spread there."""
    return (x - like.mean(0)) / like.std(0, correction=0).clamp_min(1e-12)


def folds(groups: Sequence[Hashable], positive: Tensor, count: int, seed: int) -> Tensor:
    """Numbers from 0 to count - 1, int64 (N,), so that what belongs together is never held out in parts.

    Args:
        groups: for each row what it belongs to, such as its question: right and wrong answers to it are one group.
        positive: bool (N,); groups of one kind are spread over the folds, so that each is trained on both kinds.
        count: how many folds; fewer where there are fewer groups.
        seed: of the order.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    names = list(members)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    mixed = sorted((names[i] for i in order), key=lambda one: float(positive[members[one]].double().mean()))
    found = torch.zeros(len(groups), dtype=torch.int64)
    for place, name in enumerate(mixed):
        found[members[name]] = place % min(count, len(names))
    return found


def held_out(states: Tensor, positive: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
    """How often each head's probe is right on what it has not seen, and how sure it is there.

    Args:
        states: (N, H, d).
        positive: bool (N,).
        fold: int64 (N,), from `folds`: each is held out in turn.

    Returns:
        The share that is right and the mean log-probability of what is right, both fp64 (H,).
    """
    x = states.double()
    right, sure = (x.new_zeros(x.shape[1]) for _ in range(2))
    sign = torch.where(positive, 1.0, -1.0).double().unsqueeze(-1)
    for one in fold.unique().tolist():
        out = fold == one
        w = logistic(standardised(x[~out], x[~out]), positive[~out])
        score = sign[out] * (torch.einsum("nhd,hd->nh", standardised(x[out], x[~out]), w[:, :-1]) + w[:, -1])
        right += (score > 0).double().sum(0)
        sure -= softplus(-score).sum(0)
    return right / len(x), sure / len(x)


def mass_mean(states: Tensor, positive: Tensor) -> Tensor:
    """From the mean of the negative states to that of the positive ones, of unit length: (N, H, d) -> fp64 (H, d)."""
    x = states.double()
    return torch.nn.functional.normalize(x[positive].mean(0) - x[~positive].mean(0), dim=-1)


def probe_weight(states: Tensor, positive: Tensor) -> Tensor:
    """The direction of unit length in which a probe on all states sees the positive ones: (N, H, d) -> fp64 (H, d)."""
    x = states.double()
    w = logistic(standardised(x, x), positive)[:, :-1] / x.std(0, correction=0).clamp_min(1e-12)
    return torch.nn.functional.normalize(w, dim=-1)


def spread(states: Tensor, direction: Tensor) -> Tensor:
    """The standard deviation of (N, H, d) along directions (H, d) of unit length, over N: fp64 (H,)."""
    return torch.einsum("nhd,hd->nh", states.double(), direction).std(0, correction=0)
