"""Deep visual prompts (Jia et al., ECCV 2022, as in MaPLe's repository): only the pictures' tower is prompted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from . import clip as c
from .ivlp import numbered


def logits(clip: c.Clip, texts: Tensor, images: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """(B, K); texts (K, P) are the frozen features of the classes; `learned`: `vpt`, `deep_vision.i`, each (m, D)."""
    pictures = c.encode_image(clip, images, learned["vpt"], numbered(learned, "deep_vision"))
    return c.similarity(clip, pictures, texts)


def loss(clip: c.Clip, texts: Tensor, images: Tensor, labels: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy, the mean over the batch."""
    return F.cross_entropy(logits(clip, texts, images, learned), labels)
