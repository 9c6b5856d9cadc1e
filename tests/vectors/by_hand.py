"""A Llama's forward written out in plain fp64 torch, with a place for each thing that a method changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from tests.engine.helpers import tiny_llama

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Change:
    """What a method does in a layer, whose number every function takes first; keys are repeated for each query head.

    Attributes:
        scores: (layer, q (B, H, T, d), k (B, H, S, d)) -> what is added to the scaled scores, (B, H, T, S).
        heads: (layer, o (B, T, H, d_v), q (B, T, H, d), scores (B, H, T, S) before masking, seen (B, 1, T, S)) -> o.
        mlp, resid: (layer, what the MLP adds, or the stream after the layer (B, T, D)) -> the same.
    """

    scores: Callable[[int, Tensor, Tensor], Tensor] | None = None
    heads: Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    mlp: Callable[[int, Tensor], Tensor] = lambda layer, x: x
    resid: Callable[[int, Tensor], Tensor] = lambda layer, x: x


def wide_llama(**changes: Any) -> Any:
    """The tiny Llama in fp64: 3 layers, 8 query heads, 2 key-value heads, head_dim not width / heads.

    Its norms and rotary angles too, which transformers computes in fp32 whatever the model's dtype.
    """
    model = tiny_llama(pad_token_id=None, **changes).double()
    for parent in list(model.modules()):
        for name, one in list(parent.named_children()):
            if type(one).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(len(one.weight), eps=one.variance_epsilon, dtype=torch.float64)
                setattr(parent, name, norm.requires_grad_(False))

    def rotary(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = _angles(model, position_ids)
        return torch.cat([cos, cos], -1)[:, 0], torch.cat([sin, sin], -1)[:, 0]

    model.model.rotary_emb.forward = rotary
    return model


def padded(tokens: Tensor, counts: list[int]) -> Tensor:
    """A mask (B, T) that leaves the last `counts[b]` tokens of each row."""
    return torch.arange(tokens.shape[1]) >= tokens.shape[1] - torch.tensor(counts)[:, None]


def positions_of(mask: Tensor) -> Tensor:
    """Where real tokens stand, from 0."""
    return (mask.long().cumsum(-1) - 1).clamp_min(0)


@torch.no_grad()
def logits_by_hand(model: Any, tokens: Tensor, change: Change, mask: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) of a Llama in fp64; rows where `mask` is false hold nothing of meaning."""
    mask = torch.ones_like(tokens).bool() if mask is None else mask
    cos, sin = _angles(model, positions_of(mask))
    length = tokens.shape[1]
    seen = torch.ones(length, length).bool().tril() & mask[:, None, None, :]
    x = linear_table(model.model.embed_tokens, tokens)
    for i, layer in enumerate(model.model.layers):
        x = x + _attention(layer.self_attn, _normed(layer.input_layernorm, x), cos, sin, seen, i, change)
        x = x + change.mlp(i, _mlp(layer.mlp, _normed(layer.post_attention_layernorm, x)))
        x = change.resid(i, x)
    return linear(_normed(model.model.norm, x), model.lm_head.weight.double())


def linear_table(embedding: Any, tokens: Tensor) -> Tensor:
    return embedding.weight.double()[tokens]


def _normed(norm: Any, x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight.double()


def _mlp(mlp: Any, x: Tensor) -> Tensor:
    gate, up, down = (getattr(mlp, f"{name}_proj").weight.double() for name in ("gate", "up", "down"))
    return linear(silu(linear(x, gate)) * linear(x, up), down)


def _angles(model: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    half = model.config.head_dim // 2
    theta = model.config.rope_parameters["rope_theta"] ** -(torch.arange(half).double() / half)
    angles = positions.double()[:, None, :, None] * theta
    return angles.cos(), angles.sin()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _attention(module: Any, x: Tensor, cos: Tensor, sin: Tensor, seen: Tensor, layer: int, change: Change) -> Tensor:
    batch, length, _ = x.shape
    width = module.head_dim

    def split(name: str) -> Tensor:
        return linear(x, getattr(module, name).weight.double()).view(batch, length, -1, width).transpose(1, 2)

    q, k = (_turned(split(name), cos, sin) for name in ("q_proj", "k_proj"))
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, split("v_proj")))
    scores = q @ k.transpose(-1, -2) / width**0.5
    changed = scores if change.scores is None else scores + change.scores(layer, q, k)
    o = (changed.masked_fill(~seen, torch.finfo(torch.float64).min).softmax(-1) @ v).transpose(1, 2)
    if change.heads is not None:
        o = change.heads(layer, o, q.transpose(1, 2), scores, seen)
    return linear(o.flatten(2), module.o_proj.weight.double())


def lse_of(scores: Tensor, seen: Tensor) -> Tensor:
    """Log-sum-exp over the keys that each query sees, (B, T, H)."""
    return scores.masked_fill(~seen, torch.finfo(torch.float64).min).logsumexp(-1).transpose(1, 2)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without weights, written out."""
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
