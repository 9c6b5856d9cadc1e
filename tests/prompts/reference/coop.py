"""CoOp (Zhou et al., IJCV 2022): learned vectors in front of, around or behind a class's name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from . import clip as c


def name_lengths(ids: Tensor, n_ctx: int) -> list[int]:
    """Tokens of each name in `[SOS] X..X name . [EOT]`, ids (K, T)."""
    return [int(end) - 1 - n_ctx - 1 for end in ids.argmax(-1)]


def prompts(clip: c.Clip, ids: Tensor, ctx: Tensor, position: str = "end") -> Tensor:
    """Embeddings (K, T, D) of ids (K, T) that hold n placeholders after SOS, with `ctx` (n, D) or (K, n, D) spliced in.

    end: SOS ctx name . EOT; front: SOS name ctx . EOT; middle: SOS ctx[: n // 2] name ctx[n // 2 :] . EOT.
    """
    embedded = c.embed(clip, ids)
    ctx = c.rows(ctx, len(ids))
    n_ctx = ctx.shape[1]
    first = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    made = []
    for words, own, length in zip(embedded, ctx, name_lengths(ids, n_ctx), strict=True):
        sos, name, rest = words[:1], words[1 + n_ctx : 1 + n_ctx + length], words[1 + n_ctx + length :]
        made.append(torch.cat([sos, own[:first], name, own[first:], rest]))
    return torch.stack(made)


def text_features(clip: c.Clip, ids: Tensor, learned: Mapping[str, Tensor], position: str = "end") -> Tensor:
    """Features (K, P) of the classes, not normalised; `learned`: `ctx`."""
    return c.encode_text(clip, ids, prompts(clip, ids, learned["ctx"], position))


def logits(clip: c.Clip, ids: Tensor, images: Tensor, learned: Mapping[str, Tensor], position: str = "end") -> Tensor:
    """(B, K) from ids (K, T) and images (B, 3, H, W)."""
    return c.similarity(clip, c.encode_image(clip, images), text_features(clip, ids, learned, position))


def loss(
    clip: c.Clip,
    ids: Tensor,
    images: Tensor,
    labels: Tensor,
    learned: Mapping[str, Tensor],
    position: str = "end",
) -> Tensor:
    """Cross-entropy, the mean over the batch; labels (B,)."""
    return F.cross_entropy(logits(clip, ids, images, learned, position), labels)
