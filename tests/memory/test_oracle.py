"""Any selection of keys equals dense attention in which the others are masked out, on every family of VLM."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput as _Encoded

import steer
from steer import memory
from tests.engine.families import FAMILIES, Family, florence2

from .dense import hidden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MORE = 3


def prefilled(model: nn.Module, family: Family, rows: int = 1) -> tuple[Any, dict[str, torch.Tensor], int]:
    """A cache after a prompt with a picture, what later forwards need of it, and how long it is."""
    inputs = {k: torch.cat([v] * rows) if rows > 1 else v for k, v in family.prompt(6).items()}
    if family.build is florence2:
        inputs["decoder_input_ids"] = torch.randint(3, 90, (rows, 11), generator=torch.Generator().manual_seed(3))
        out = model(**inputs)
        more = {"attention_mask": inputs["attention_mask"], "encoder_outputs": _Encoded(out.encoder_last_hidden_state)}
        return out.past_key_values, more, 11
    if not family.registry:
        states = model.vision_model(inputs["pixel_values"]).last_hidden_state
        out = model.text_decoder(input_ids=inputs["input_ids"], encoder_hidden_states=states, use_cache=True)
        return out.past_key_values, {"encoder_hidden_states": states}, inputs["input_ids"].shape[1]
    out = model(**inputs, use_cache=True)
    return out.past_key_values, {}, inputs["input_ids"].shape[1]


def goes_on(model: nn.Module, family: Family, cache: Any, more: dict[str, Any], tokens: torch.Tensor) -> torch.Tensor:
    if family.build is florence2:
        return model(**more, decoder_input_ids=tokens, past_key_values=cache).logits
    if not family.registry:
        return model.text_decoder(input_ids=tokens, past_key_values=cache, **more).logits
    return model(input_ids=tokens, past_key_values=cache, **more).logits


def selections(kind: str, shape: tuple[int, int, int], layers: list[int]) -> dict[int, torch.Tensor]:
    """What each layer keeps, bool (B, H_kv, S); every kind differs from layer to layer."""
    generator = torch.Generator().manual_seed(5)
    batch, heads, total = shape
    made = {}
    for layer in layers:
        if kind == "ragged layers":
            keep = torch.rand(total, generator=generator).argsort() < total - 2 - layer
            keep = keep.expand(batch, heads, total).clone()
        elif kind == "heads of one size":
            keep = torch.rand(batch, heads, total, generator=generator).argsort(-1).argsort(-1) < total - 3
        else:
            keep = torch.rand(batch, heads, total, generator=generator) < 0.6
            keep[..., 0] = True
        made[layer] = keep
    return made


CASES = [
    (name, implementation, kind)
    for name, family in FAMILIES.items()
    for implementation in (("sdpa", "eager") if family.registry else ("eager",))
    for kind in ("ragged layers", "heads of one size", "ragged heads")
]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("name", "implementation", "kind"), CASES)
def test_a_selection_equals_a_mask(name, implementation, kind, rows) -> None:
    family = FAMILIES[name]
    model = family.model(implementation)
    if name.startswith("qwen") and rows > 1:
        pytest.skip("one picture for each row: covered by the memory tests")
    cache, more, total = prefilled(model, family, rows)
    layers = sorted(memory.prunable(model, cache))
    mixer = steer.inspect(model).tower().layers[layers[0]].attention
    keep = selections(kind, (rows, mixer.num_kv_heads, total), layers)
    tokens = torch.randint(3, 90, (rows, MORE), generator=torch.Generator().manual_seed(9))
    before = [
        layer.keys.clone() for layer in getattr(cache, "self_attention_cache", cache).layers if hasattr(layer, "keys")
    ]

    with hidden(model, {i: ~k for i, k in keep.items()}, mixer.num_heads):
        whole = copy.deepcopy(cache)
        truth = [goes_on(model, family, whole, more, t) for t in (tokens, tokens[:, :1], tokens[:, :1])]
    pruned = memory.prune(model, cache, keep)
    with memory.masks(model):
        found = [goes_on(model, family, pruned, more, t) for t in (tokens, tokens[:, :1], tokens[:, :1])]
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    bare = goes_on(model, family, copy.deepcopy(cache), more, tokens)
    assert (bare - truth[0]).abs().max() > 1e-4
    after = [layer.keys for layer in getattr(cache, "self_attention_cache", cache).layers if hasattr(layer, "keys")]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
