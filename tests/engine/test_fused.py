"""K3 to K5 and prefixes inside flash and flex attention give what they give in eager attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers.integrations.flex_attention as flex
from torch import nn
from transformers import AttentionInterface, masking_utils

import steer
from steer import gates, ops, positions, sites

from .helpers import HEAD_DIM, HEADS, KV_HEADS, dense_attention, randn, tiny_llama, tokens

CHANGES = {
    "query": lambda: steer.Intervention(
        sites.head_q(), ops.LowRankQuery(randn(HEADS, HEAD_DIM, 2), randn(HEADS, HEAD_DIM, 2, seed=1))
    ),
    "key": lambda: steer.Intervention(sites.head_k(layers=[0, 2]), ops.Scale(1.7)),
    "bias": lambda: steer.Intervention(
        sites.key_bias(), ops.KeyBias(1.3, positions.span(0, 2)), gates.Sigmoid(randn(HEADS, HEAD_DIM))
    ),
    "prefix": lambda: steer.Intervention(
        sites.kv_prefix(), ops.Prefix(randn(KV_HEADS, 2, HEAD_DIM), randn(KV_HEADS, 2, HEAD_DIM, seed=1))
    ),
    "lse": lambda: steer.Intervention(
        sites.head_out(), ops.Add(randn(HEADS, HEAD_DIM)), gates.Sigmoid(randn(HEADS, HEAD_DIM), minus_lse=True)
    ),
}


def like_flash(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """What flash attention computes, in fp64: causal from the bottom right, a 2-D mask for padding, no score mask."""
    assert attention_mask is None or attention_mask.ndim == 2
    length, total = query.shape[2], key.shape[2]
    hidden = torch.ones(length, total, dtype=torch.bool).triu(total - length + 1)[None, None]
    if attention_mask is not None:
        hidden = hidden | ~attention_mask[:, None, None, -total:].bool()
    out, _ = dense_attention(query, key, value, kwargs["scaling"], hidden=hidden)
    return out.nan_to_num().to(query.dtype).transpose(1, 2), None


@pytest.fixture
def fused(request, monkeypatch):
    """The name of a fused attention function, made to run here without a GPU and without minutes of compiling."""
    if request.param == "flex_attention":
        make = flex.flex_attention, masking_utils.create_block_mask
        attend = lambda q, k, v, training, **kwargs: make[0](q, k, v, **kwargs)  # noqa: E731
        monkeypatch.setattr(flex, "compile_friendly_flex_attention", attend)
        block_mask = lambda *a, _compile, **kwargs: make[1](*a, **kwargs)  # noqa: E731
        monkeypatch.setattr(masking_utils, "create_block_mask", block_mask)
    else:
        monkeypatch.setitem(AttentionInterface._global_mapping, request.param, like_flash)
    return request.param


@pytest.mark.parametrize("fused", ["flash_attention_2", "flex_attention"], indirect=True)
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("name", sorted(CHANGES))
def test_fused_attention_agrees_with_eager(fused, padded, name) -> None:
    """In one forward and in cached decoding, with left padding and without."""
    ids = tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :padded] = 0
    found, bare = [], None
    for implementation in (fused, "eager"):
        model = tiny_llama(implementation="eager")
        model.config._attn_implementation_internal = implementation  # its setter asks for the package
        bare = model(ids, attention_mask=mask).logits[:, -1]
        with steer.attach(model, CHANGES[name]()):
            made = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=3,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        found.append(torch.stack(made.logits, 1))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert (found[0][:, 0] - bare).abs().max() > 1e-3
