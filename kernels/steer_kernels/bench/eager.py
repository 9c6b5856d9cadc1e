"""What a reader would write: every operation as its formula says, in plain torch, with no thought of memory.

These are what `x eager` and `x torch.compile` compare with. They are also checked against: a row whose kernel and
plain formula differ is an error. Layouts as in the operations of the same name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def shift(h: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """K1: h (B, T, D), v (D,) fp32."""
    return h + (scale * v).to(h.dtype)


def shift_rows(h: torch.Tensor, v: torch.Tensor, gate: torch.Tensor, rows: torch.Tensor, scale: float) -> torch.Tensor:
    """K1 with a gate (B, T, 1) and a mask of rows (B, T)."""
    return torch.where(rows[..., None], (h + scale * gate * v).to(h.dtype), h)


def shift_keep_norm(h: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """K2: norms in fp32."""
    wide = h.float()
    moved = wide + scale * v
    kept = wide.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return (moved * kept).to(h.dtype)


def icv(h: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """ICV: K2 whose step is relative to the row's length and up to twice as long where h points away from v."""
    wide = h.float()
    length = wide.norm(dim=-1, keepdim=True)
    factor = 1 + F.cosine_similarity(wide, -v.expand_as(wide), dim=-1).clamp_min(0)[..., None]
    moved = wide + scale * length * factor * v
    return (moved * (length / moved.norm(dim=-1, keepdim=True).clamp_min(1e-6))).to(h.dtype)


def gate_of(
    q: torch.Tensor, w: torch.Tensor, b: torch.Tensor, lse: torch.Tensor | None, layer_norm: bool
) -> torch.Tensor:
    """sigmoid(<f(q), w> + b - lse), (B, T, H, 1) fp32."""
    read = F.layer_norm(q.float(), q.shape[-1:], eps=1e-5) if layer_norm else q.float()
    score = (read * w).sum(-1) + b
    return torch.sigmoid(score if lse is None else score - lse)[..., None]


def head_shift(
    o: torch.Tensor,
    q: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    v: torch.Tensor,
    lse: torch.Tensor | None = None,
    *,
    layer_norm: bool = False,
) -> torch.Tensor:
    """K3."""
    return (o + gate_of(q, w, b, lse, layer_norm) * v).to(o.dtype)


def query_shift(
    q: torch.Tensor, u_q: torch.Tensor, u_k: torch.Tensor, w: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """K4 with its gate; the gate reads the query through a LayerNorm."""
    wide = q.float()
    low = torch.einsum("bthd,hdr->bthr", wide, u_q)
    step = torch.einsum("bthr,hdr->bthd", low, u_k) * (u_q.shape[1] / u_q.shape[2]) ** 0.5
    return (wide + gate_of(q, w, b, None, True) * step).to(q.dtype)


def rope_query_shift(
    q: torch.Tensor,
    u_q: torch.Tensor,
    u_k: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """K4 behind the rotation that transformers applies; cos and sin (1, T, d)."""
    first, second = q.chunk(2, -1)
    turned = q * cos[:, :, None] + torch.cat([-second, first], -1) * sin[:, :, None]
    return query_shift(turned, u_q, u_k, w, b)


def jsd(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """JS of the rows of two logit matrices, by the textbook: a mixture and two KL divergences, in fp32."""
    log_p, log_q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    return 0.5 * ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1))


def token_scores(
    query: torch.Tensor, key: torch.Tensor, scaling: float, query_slots: torch.Tensor, key_slots: torch.Tensor
) -> torch.Tensor:
    """The attention matrix as eager attention makes it (keys repeated, softmax in fp32), and its mean over queries."""
    groups = query.shape[1] // key.shape[1]
    keys = key.repeat_interleave(groups, 1) if groups > 1 else key
    scores = (query @ keys.mT * scaling).masked_fill(key_slots > query_slots[:, None], float("-inf"))
    weights = torch.softmax(scores, -1, dtype=torch.float32)
    return weights.unflatten(1, (key.shape[1], groups)).mean((2, 3))


def select_count(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The best `count` tokens of every row as a mask."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.topk(count, -1).indices, True)


def select_budget(scores: torch.Tensor, mass: float) -> torch.Tensor:
    """All but the least tokens, as long as these have no more than `mass` of the whole."""
    least, order = scores.sort(-1)
    keep = least.double().cumsum(-1) > mass * scores.double().sum(-1, keepdim=True)
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def compact(keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept columns of (B, H, S, d); index (B, H, n), or (n,) for all heads."""
    if index.dim() == 1:
        return keys[:, :, index], values[:, :, index]
    wide = index[..., None]
    return (
        keys.gather(2, wide.expand(*index.shape, keys.shape[-1])),
        values.gather(2, wide.expand(*index.shape, values.shape[-1])),
    )


def compact_ragged(
    keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As many columns for each head as `valid` says, one head's after the other's."""
    kept_keys, kept_values = compact(keys, values, index)
    return kept_keys[valid], kept_values[valid]


def key_bias(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
    extra: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K5: queries and keys with `extra` more columns, values widened as much; a (B, H, T, r), b (B, H_kv, S, r)."""
    spare = extra - a.shape[-1]
    return (
        torch.cat([query, F.pad(a / scaling, (0, spare)).to(query.dtype)], -1),
        torch.cat([key, F.pad(b, (0, spare)).to(key.dtype)], -1),
        F.pad(value, (0, extra)),
    )
