"""Independent prompts in both towers (Khattak et al., CVPR 2023): MaPLe without the coupling."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from . import clip as c


def numbered(learned: Mapping[str, Tensor], start: str) -> dict[int, Tensor]:
    """`{start}.0`, `{start}.1` ... as what comes before layer 1, 2 ..."""
    return {int(name.rpartition(".")[2]) + 1: t for name, t in learned.items() if name.startswith(f"{start}.")}


def features(clip: c.Clip, ids: Tensor, images: Tensor, learned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features of pictures (B, P) and classes (K, P), neither normalised.

    `learned`: `ctx` (n, D), `deep_text.i` (n, D), `vpt` (m, D), `deep_vision.i` (m, D); deep ones before layer i + 1.
    """
    pictures = c.encode_image(clip, images, learned["vpt"], numbered(learned, "deep_vision"))
    spliced = c.splice(c.embed(clip, ids), learned["ctx"])
    return pictures, c.encode_text(clip, ids, spliced, numbered(learned, "deep_text"))


def logits(clip: c.Clip, ids: Tensor, images: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """(B, K)."""
    return c.similarity(clip, *features(clip, ids, images, learned))


def loss(clip: c.Clip, ids: Tensor, images: Tensor, labels: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy, the mean over the batch."""
    return F.cross_entropy(logits(clip, ids, images, learned), labels)
