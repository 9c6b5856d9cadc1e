"""Heads' results replaced by given ones at the prompt's last token, another set of heads in every row of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from .. import fitting, ops, positions, sites
from .._teacher_forcing import inputs_of, keep_logits, one_product
from ..intervention import Intervention
from ..prompts import Batch
from ..recording import record
from ..session import attach
from ..training import frozen
from .prefix import divided, score_after

Means = Mapping[int, torch.Tensor]
"""By layer (H, d_v): what may replace each head's result. P is the number of heads in all layers, in this order."""

Scale = Literal["probability", "log_probability"]
Which = Literal["self", "cross"]


def by_layer(values: torch.Tensor, means: Means, layers: int | None = None) -> torch.Tensor:
    """Numbers of all heads as a table.

    Args:
        values: (..., P).
        means: tells which heads there are.
        layers: how many layers the tower has; None: up to the last that has heads.

    Returns:
        fp32 (..., L, H), NaN where a layer has no such head.
    """
    count = max(means) + 1 if layers is None else layers
    table = torch.full((*values.shape[:-1], count, max(sizes(means))), torch.nan)
    for layer, part in zip(means, values.float().split(sizes(means), dim=-1), strict=True):
        table[..., layer, : part.shape[-1]] = part
    return table


def sizes(means: Means) -> list[int]:
    """How many heads each layer has."""
    return [len(mean) for mean in means.values()]


def patches(means: Means, sets: torch.Tensor, attention: Which = "self") -> list[Intervention]:
    """Interventions that replace, in row s of a batch, the results of the heads in sets[s] at the prompt's last token.

    Args:
        means: what replaces them.
        sets: bool (S, P).
        attention: whose heads.

    Returns:
        One intervention for each layer with a head in any of the sets.
    """
    last = positions.last_prompt()
    return [
        Intervention(sites.head_out(layer, positions=last, attention=attention), ops.Apply(_put(mean, part)))
        for (layer, mean), part in zip(means.items(), sets.split(sizes(means), dim=1), strict=True)
        if part.any()
    ]


def _put(mean: torch.Tensor, chosen: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(x: torch.Tensor) -> torch.Tensor:
        """(S, T, H, d_v)."""
        return torch.where(chosen[:, None, :, None].to(x.device), mean.to(x), x)

    return put


def scores(
    model: Any, query: Batch, means: Means, sets: torch.Tensor, batch_size: int = 16, attention: Which = "self"
) -> fitting.Scores:
    """How well a model answers one query under S sets of heads, `batch_size` of them in one forward.

    All but the prompt's last token is read once, where the model allows that; then a set costs one token and an answer.

    Args:
        model: any mapped model that writes text.
        query: one prompt with its answer.
        means: what replaces the heads' results.
        sets: bool (S, P).
        batch_size: rows in one forward.
        attention: whose heads.

    Returns:
        One number for each set, on the CPU.
    """
    parts, split = [], divided(model, query)
    for part in sets.split(batch_size):
        items = patches(means, part, attention)
        if split is None:
            parts.append(fitting.score(model, [repeated(query, len(part))], *items))
        else:
            memory, last = split
            parts.append(score_after(model, memory, repeated(last, len(part)), *items))
    return fitting.Scores(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("log_prob", "first_log_prob", "right"))
    )


def effects(
    model: Any, query: Batch, means: Means, batch_size: int = 16, attention: Which = "self"
) -> tuple[fitting.Scores, fitting.Scores]:
    """How well a model answers one query as it is, and with each head's result replaced, one head at a time.

    Arguments are those of `scores`.

    Returns:
        Scores of one number, and of P.
    """
    count = sum(sizes(means))
    # The first row is left alone, so that it is computed as the others are.
    sets = torch.cat([torch.zeros(1, count, dtype=torch.bool), torch.eye(count, dtype=torch.bool)])
    found = scores(model, query, means, sets, batch_size, attention)
    fields = found.log_prob, found.first_log_prob, found.right
    return fitting.Scores(*(one[:1] for one in fields)), fitting.Scores(*(one[1:] for one in fields))


def first_order(
    model: Any, batch: Batch, means: Means, scale: Scale, attention: Which = "self"
) -> tuple[torch.Tensor, torch.Tensor]:
    """First-order estimates of what replacing each head's result adds to how well a model answers.

    With f the (log-)probability of the answer and o (d_v,) a head's result at the prompt's last token, the estimate is
    (df / do) . (mean - o): one forward and one backward for all heads (attribution patching).

    Args:
        model: any mapped model that writes text.
        batch: B prompts with answers.
        means: what would replace the heads' results.
        scale: what f is.
        attention: whose heads.

    Returns:
        f, (B,), and the estimates, (B, P); fp32 on the CPU.
    """
    last = positions.last_prompt()
    size = len(batch)
    moves = {layer: torch.zeros(size, 1, *mean.shape, requires_grad=True) for layer, mean in means.items()}
    inputs, length = inputs_of(model, batch)
    assert batch.answers is not None
    site = sites.head_out(list(means), positions=last, attention=attention)
    moved = [
        Intervention(sites.head_out(layer, positions=last, attention=attention), ops.Apply(_add(move)))
        for layer, move in moves.items()
    ]
    with (
        frozen(model),
        torch.enable_grad(),
        record(model, site, device="cpu", dtype=torch.float32, prompt_length=length) as acts,
        one_product(model),
        attach(model, *moved, measure="none", prompt_length=length),
    ):
        logits = model(**inputs, **keep_logits(model, batch.answers.shape[1])).logits
        rows = logits[:, -batch.answers.shape[1] :].float()
        log_prob = fitting._score(rows, batch.answers.to(logits.device))[0]
        value = log_prob.exp() if scale == "probability" else log_prob
        # A layer whose result nothing reads has no gradient: its heads have no effect.
        found = torch.autograd.grad(value.sum(), list(moves.values()), allow_unused=True)
    results = {key.layer: kept.reshape(size, *means[key.layer].shape) for key, kept in acts.items()}
    estimates = [
        torch.zeros(size, len(mean))
        if slope is None
        else (slope[:, 0].float() * (mean.float().cpu() - results[layer])).sum(-1)
        for (layer, mean), slope in zip(means.items(), found, strict=True)
    ]
    return value.detach().float().cpu(), torch.cat(estimates, dim=1)


def _add(move: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x + move.to(x)


def repeated(query: Batch, count: int) -> Batch:
    """`count` copies of a batch, one after the other; what is by picture or patch goes on in the order of the rows."""
    inputs = {name: torch.cat([value] * count) for name, value in query.inputs.items()}
    return replace(query, inputs=inputs, answers=None if query.answers is None else query.answers.repeat(count, 1))
