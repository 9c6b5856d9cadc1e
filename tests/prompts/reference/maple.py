"""MaPLe (Khattak et al., CVPR 2023): text prompts in several layers, and vision prompts that are linear in them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from . import clip as c

PREFIX = "prompt_learner."


def _linear(learned: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ learned[f"{PREFIX}{name}.weight"].T + learned[f"{PREFIX}{name}.bias"]


def features(clip: c.Clip, ids: Tensor, images: Tensor, learned: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features of pictures (B, P) and classes (K, P), neither normalised.

    `learned`, each name after `prompt_learner.`: `ctx` (n, D) and `proj` for the first layer, `compound_prompts_text.i`
    and `compound_prompt_projections.i` for layer i + 1. Text: rows 1 .. n. Vision: n rows at the end.
    """
    ctx = learned[f"{PREFIX}ctx"]
    count = sum(name.startswith(f"{PREFIX}compound_prompts_text.") for name in learned)
    text = {i + 1: learned[f"{PREFIX}compound_prompts_text.{i}"] for i in range(count)}
    vision = {layer: _linear(learned, f"compound_prompt_projections.{layer - 1}", text[layer]) for layer in text}
    pictures = c.encode_image(clip, images, _linear(learned, "proj", ctx), vision)
    return pictures, c.encode_text(clip, ids, c.splice(c.embed(clip, ids), ctx), text)


def logits(clip: c.Clip, ids: Tensor, images: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """(B, K)."""
    return c.similarity(clip, *features(clip, ids, images, learned))


def loss(clip: c.Clip, ids: Tensor, images: Tensor, labels: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy, the mean over the batch."""
    return F.cross_entropy(logits(clip, ids, images, learned), labels)
