"""Models that transformers does not know map by the same rules; a head steered through the map is the head meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import nn

import steer
from steer import Intervention, ops, sites
from steer._inspect.features import pattern_of

from .strangers import LynxConfig, LynxForTalk, Owl

PICTURE, WORDS = (2, 3, 16, 16), 6


@dataclass(frozen=True)
class Stranger:
    """How to build and run a model; per tower: blocks, width, (heads, KV heads, head's width), where heads leave."""

    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    towers: dict[str, tuple[int, int, tuple[int, int, int], str]]
    logits: str
    registry: bool


STRANGERS = {
    "owl": Stranger(
        Owl,
        lambda model, words, picture: model(words, picture),
        {
            "text": (3, 32, (4, 4, 8), "speaker.{}.gaze.untangle"),
            "vision": (5, 24, (3, 3, 8), "eye.stages.{}.gaze.untangle"),
        },
        "verdict",
        registry=False,
    ),
    "lynx": Stranger(
        lambda: LynxForTalk(LynxConfig()),
        lambda model, words, picture: model(words, picture).logits,
        {
            "text": (3, 24, (6, 2, 12), "chain.{}.mix.wo"),
            "vision": (4, 20, (5, 5, 4), "sight.chain.{}.mix.wo"),
            "connector": (2, 16, (2, 2, 8), "bridge.rounds.{}.within.wo"),
        },
        "readout",
        registry=True,
    ),
}


@pytest.fixture(params=STRANGERS.values(), ids=STRANGERS)
def stranger(request: pytest.FixtureRequest) -> Stranger:
    return request.param


def _model(stranger: Stranger) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    torch.manual_seed(0)
    model = stranger.build().eval().requires_grad_(False)
    words, picture = torch.randint(0, 60, (2, WORDS)), torch.randn(PICTURE)
    return model, lambda: stranger.run(model, words, picture)


def test_a_stranger_maps_by_the_general_rules(stranger: Stranger) -> None:
    model, _ = _model(stranger)
    found = steer.inspect(model)
    assert list(found.towers) == list(stranger.towers)
    assert (found.logits, found.notes) == (stranger.logits, ())
    for name, (blocks, width, sizes, leaves) in stranger.towers.items():
        tower = found.tower(name)
        assert (len(tower.layers), tower.width) == (blocks, width)
        for layer in tower.layers:
            attention = layer.attention
            assert (attention.num_heads, attention.num_kv_heads, attention.head_dim) == sizes
            assert (attention.value_dim, attention.out_proj) == (sizes[2], leaves.format(layer.index))
            assert attention.registry == stranger.registry
            assert layer.mlp_out


def test_projections_and_the_connectors_cross_attention() -> None:
    found = steer.inspect(LynxForTalk(LynxConfig()))
    across = found.tower("connector").layers[1].cross_attention
    assert (across.path, across.num_heads, across.num_kv_heads, across.head_dim) == ("bridge.rounds.1.across", 4, 2, 8)
    for attention in (across, found.tower().layers[0].attention):
        parts = (attention.q, attention.k, attention.v)
        assert [part.path for part in parts] == [f"{attention.path}.{name}" for name in ("wq", "wk", "wv")]


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_head_of_a_fused_projection_scaled_equals_its_rows_scaled(tower: str, part: str) -> None:
    """Owl's eye has all of q, then k, then v; its speaker q, k, v of one head, then of the next."""
    model, run = _model(STRANGERS["owl"])
    fused, heads = ("speaker.1.gaze.tangle", 4) if tower == "text" else ("eye.stages.1.gaze.tangle", 3)
    attention = steer.inspect(model).tower(tower).layers[1].attention
    assert [p.path for p in (attention.q, attention.k, attention.v)] == [fused] * 3
    head, width, slot = 2, 8, "qkv".index(part)
    start = (head * 3 + slot if tower == "text" else slot * heads + head) * width
    plain = run()
    half = Intervention(getattr(sites, f"head_{part}")(layers=[1], heads=[head], tower=tower), ops.Scale(0.5))
    with steer.attach(model, half):
        steered = run()
    assert torch.equal(run(), plain)
    layer = model.get_submodule(fused)
    layer.weight[start : start + width] *= 0.5
    layer.bias[start : start + width] *= 0.5
    edited = run()
    torch.testing.assert_close(steered, edited, rtol=1e-5, atol=1e-5)
    assert (steered - plain).abs().max() > 1e-5


LAYOUTS = {
    "all of q, of k, of v": ("(n h d) -> n h d", "(n h d)"),
    "head by head": ("(h n d) -> n h d", "(h n d)"),
    "interleaved": ("(h d n) -> n h d", "(h d n)"),
    "within the first half of a head's features": ("(h half n d) -> n h (d half)", None),
}


@pytest.mark.parametrize(("layout", "pattern"), LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_fused_layout_is_found_or_said_to_be_unknown(layout: str, pattern: str | None, index: int) -> None:
    sizes = {"n": 3, "h": 4} | ({"half": 2} if "half" in layout else {})
    part = rearrange(torch.arange(96), layout, **sizes)[index]
    for tokens in (part[None, :, None].expand(1, 4, 7, 8), part[None, :, :, None].expand(1, 4, 8, 7)):
        assert pattern_of(tokens, 4, 8, 96) == (pattern and (pattern, index))


def test_keys_repeated_for_groups_of_queries_fit_no_pattern() -> None:
    keys = rearrange(torch.arange(32, 48), "(h d) -> h d", h=2).repeat_interleave(2, 0)
    assert pattern_of(keys[None, :, None].expand(1, 4, 7, 8), 4, 8, 64) is None


@pytest.mark.parametrize("tower", ["text", "vision", "connector"])
def test_a_head_scaled_to_nothing_equals_its_columns_set_to_nothing(stranger: Stranger, tower: str) -> None:
    if tower not in stranger.towers:
        pytest.skip("the model has no such tower")
    model, run = _model(stranger)
    _, _, (_, _, width), leaves = stranger.towers[tower]
    plain = run()
    head = Intervention(sites.head_out(layers=[1], heads=[1], tower=tower), ops.Scale(0.0))
    with steer.attach(model, head):
        steered = run()
    assert torch.equal(run(), plain)
    model.get_submodule(leaves.format(1)).weight[:, width : 2 * width] = 0
    edited = run()
    torch.testing.assert_close(steered, edited, rtol=1e-5, atol=1e-5)
    assert (steered - plain).abs().max() > 1e-4


def test_reading_a_stranger_leaves_no_trace(stranger: Stranger) -> None:
    model, run = _model(stranger)
    plain = run()
    before: Any = [dict(vars(module)) for module in model.modules()]
    steer.inspect(model)
    assert [dict(vars(module)) for module in model.modules()] == before
    assert torch.equal(run(), plain)
