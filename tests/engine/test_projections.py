"""Blip's vision tower makes q, k and v in one layer, outside the registry: its heads are still reached one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import steer
from steer import Intervention, ops, sites

from .families import CLIP_VISION, FAMILIES

HEADS = CLIP_VISION["num_attention_heads"]
WIDTH = CLIP_VISION["hidden_size"] // HEADS
LAYER = 1


def halved(part: str, head: int) -> Intervention:
    return Intervention(getattr(sites, f"head_{part}")(layers=[LAYER], heads=[head], tower="vision"), ops.Scale(0.5))


def halve_rows(model: nn.Module, part: str, head: int) -> None:
    """BlipAttention reads the features of `qkv` as (3, heads, width), q before k before v."""
    layer = model.vision_model.encoder.layers[LAYER].self_attn.qkv
    start = "qkv".index(part) * HEADS * WIDTH + head * WIDTH
    layer.weight[start : start + WIDTH] *= 0.5
    layer.bias[start : start + WIDTH] *= 0.5


@pytest.mark.parametrize(
    "chosen", [*([(part, head)] for part in "qkv" for head in range(HEADS)), [("q", 0), ("k", 1), ("v", 2)]], ids=str
)
def test_vision_heads_scaled_equal_their_rows_scaled(chosen) -> None:
    family = FAMILIES["blip"]
    model = family.model()
    for weights in model.vision_model.parameters():  # as made, they are too small for a head to matter
        weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(weights.numel())) * 0.3)
    pixels = family.prompt()["pixel_values"]
    run = lambda: model.vision_model(pixels).last_hidden_state  # noqa: E731
    plain = run()
    with steer.attach(model, *(halved(*one) for one in chosen)):
        steered = run()
    assert torch.equal(run(), plain)
    for one in chosen:
        halve_rows(model, *one)
    torch.testing.assert_close(steered, run(), rtol=1e-5, atol=1e-5)
    assert (steered - plain).abs().max() > 1e-4
