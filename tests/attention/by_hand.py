"""Attention written out in fp64 over a whole sequence, with the scores changed and keys hidden as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
from transformers.modeling_utils import AttentionInterface

Rule = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
"""A layer's queries (B, H, P, d) and keys (B, H_kv, P, d) of the prompt, and what scores are multiplied by -> which
tokens stay, bool (B, H_kv, P)."""


@dataclass
class Dense:
    """What is done to the scores of one forward without a cache.

    Attributes:
        image: bool (B, S), image tokens.
        prompt: P, how many slots the prompt has: rows from P - 1 on are those that an answer is written from.
        alpha: a share of each score's size that image tokens' scores get at these rows.
        beta: a constant that they get there.
        layers: where.
        keep: rows from P on see only these of the prompt's keys, in every layer.
    """

    image: torch.Tensor
    prompt: int
    alpha: float = 0.0
    beta: float = 0.0
    layers: tuple[int, ...] = (0, 1)
    keep: Rule | None = None

    def attend(self, module, query, key, value, mask, scaling=None, **kwargs) -> tuple[torch.Tensor, None]:
        length, groups = query.shape[2], query.shape[1] // key.shape[1]
        wide = [t.double().repeat_interleave(groups, dim=1) for t in (key, value)]
        scores = query.double() @ wide[0].transpose(-1, -2) * scaling
        row = torch.arange(length)
        if module.layer_idx in self.layers:
            where = (row >= self.prompt - 1)[:, None] & self.image[:, None, None, :length]
            scores = scores + (self.alpha * scores.abs() + self.beta) * where
        hidden = torch.ones(length, length).triu(1).bool() if mask is None else ~mask
        if self.keep is not None:
            stays = self.keep(query[:, :, : self.prompt], key[:, :, : self.prompt], scaling)
            gone = nn.functional.pad(~stays, (0, length - self.prompt)).repeat_interleave(groups, dim=1)
            hidden = hidden | (gone[:, :, None] & (row >= self.prompt)[:, None])
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).nan_to_num()
        return (weights @ wide[1]).to(query.dtype).transpose(1, 2), None


@contextmanager
def by_hand(model: Any, dense: Dense) -> Iterator[Dense]:
    """A model's text tower attending as `dense` says."""
    config = model.model.language_model.config
    before = config._attn_implementation
    AttentionInterface._global_mapping["by-hand"] = dense.attend
    MASKS._global_mapping["by-hand"] = MASKS["sdpa"]
    config._attn_implementation = "by-hand"
    try:
        yield dense
    finally:
        config._attn_implementation = before
        del AttentionInterface._global_mapping["by-hand"], MASKS._global_mapping["by-hand"]


@contextmanager
def hooked(modules: list[nn.Module], function: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Each module's output put through a function of its number and the tensor, by plain torch hooks."""

    def hook(number: int) -> Callable[..., Any]:
        def change(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (function(number, output[0]), *output[1:])
            return function(number, output)

        return change

    handles = [module.register_forward_hook(hook(i)) for i, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mixed(first: torch.Tensor, second: torch.Tensor, gamma: float, cut: float) -> torch.Tensor:
    """gamma (p - q) + q on log-probabilities, -inf where exp(p) < cut max exp(p), log-normalised again."""
    p, q = first.double().log_softmax(-1), second.double().log_softmax(-1)
    out = gamma * (p - q) + q
    out[p.exp() < cut * p.exp().amax(-1, keepdim=True)] = -torch.inf
    return out.log_softmax(-1)


def greedy(last: Callable[[torch.Tensor], torch.Tensor], prompt: torch.Tensor, count: int) -> Any:
    """A prompt and `count` likeliest tokens after it, and the scores (1, count, V) that they are the likeliest by."""
    sequence, scores = prompt, []
    for _ in range(count):
        scores.append(last(sequence))
        sequence = torch.cat([sequence, scores[-1].argmax(-1)[:, None]], dim=1)
    return sequence, torch.stack(scores, 1)
