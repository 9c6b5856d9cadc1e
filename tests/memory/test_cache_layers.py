"""Layers of every kind: those that keep every token are pruned, others go on, and no run writes to a memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from steer.errors import InterventionError
from steer.memory import Kept, Memory, prunable, prune
from steer.memory._helping import _before
from steer.memory._masks import at_slots
from steer.memory._state import tensors_of
from tests.engine.helpers import tiny_llama, tokens
from tests.engine.test_fused import fused  # noqa: F401

from .answers import CLOSE, GREEDY, Whole, llama_with, logits, pruned, question, random_selection

SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5, "head_dim": 8}
SHARED = {"head_dim": 8, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 101}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
INDEXED = {**LATENT, "first_k_dense_replace": 4, "index_topk": 6, "index_head_dim": 16, "index_n_heads": 2}
LINEAR = {f"linear_{n}": v for n, v in (("num_key_heads", 2), ("num_value_heads", 4))}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
MAMBA = {"head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
ALTUP = {
    "intermediate_size": [48] * 4,
    "activation_sparsity_pattern": [0.0] * 4,
    "altup_num_inputs": 2,
    "laurel_rank": 4,
}

KINDS: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "multi-head": ("LlamaConfig", {"num_key_value_heads": 4}, [0, 1, 2, 3]),
    "one key-value head": ("LlamaConfig", {"num_key_value_heads": 1}, [0, 1, 2, 3]),
    "latent": ("DeepseekV3Config", {**LATENT, "first_k_dense_replace": 4}, [0, 1, 2, 3]),
    "latent, another": ("DeepseekV2Config", {**LATENT, "first_k_dense_replace": 4}, [0, 1, 2, 3]),
    "sliding": ("MistralConfig", {"sliding_window": 5}, []),
    "sliding and full": ("Gemma3TextConfig", SLIDING, [1, 3]),
    "sliding and full with sinks": (
        "GptOssConfig",
        {**SLIDING, "num_local_experts": 2, "num_experts_per_tok": 1},
        [1, 3],
    ),
    "chunked": (
        "Llama4TextConfig",
        {"head_dim": 8, "attention_chunk_size": 4, "intermediate_size_mlp": 48, "moe_layers": []},
        [3],
    ),
    "shared": ("Gemma4TextConfig", {**SHARED, "layer_types": ["full_attention"] * 4, "global_head_dim": 8}, [0]),
    "shared and sliding": (
        "Gemma4TextConfig",
        {**SHARED, "num_hidden_layers": 6, "layer_types": ["full_attention", "sliding_attention"] * 3}
        | {"sliding_window": 5, "global_head_dim": 8},
        [0],
    ),
    "shared by another": (
        "Gemma3nTextConfig",
        {**SHARED, **ALTUP, "sliding_window": 5, "layer_types": ["full_attention", "sliding_attention"] * 2},
        [],
    ),
    "linear": ("Qwen3_5TextConfig", LINEAR, [3]),
    "convolutions": ("Lfm2Config", {"layer_types": ["conv", "full_attention"] * 2}, [1, 3]),
    "both in one layer": ("FalconH1Config", {**MAMBA, "mamba_n_groups": 1}, []),
    "indexed": ("DeepseekV32Config", INDEXED, []),
}


def built(kind: str, implementation: str = "sdpa", **more: Any) -> nn.Module:
    name, changes, _ = KINDS[kind]
    base = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    base |= {"num_key_value_heads": 2, "vocab_size": 101, "initializer_range": 0.2}
    base |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    torch.manual_seed(0)
    config = getattr(hf, name)(**{**base, **changes, **more})
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    return model.eval().requires_grad_(False)


def held(kept: Memory) -> list[torch.Tensor]:
    """Every tensor of a memory."""
    found = []
    for layer in kept.layers:
        found += [layer.keys, layer.values, layer.slots] if isinstance(layer, Kept) else tensors_of(layer)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind) -> None:
    model = built(kind, "eager" if "sinks" in kind or kind == "indexed" else "sdpa")
    context = {"input_ids": tokens(1, 12, seed=3)}
    read = Memory.empty(model).read(model, context)
    assert sorted(read.places) == KINDS[kind][2]
    keep = random_selection(read)
    whole, kept = Whole(model, context, keep), pruned(read, keep).bind(model)
    before = [t.clone() for t in held(kept)]
    assert before
    for rows, options in ((1, {}), (2, {}), (1, {"num_beams": 2})):
        asked = question(rows)
        found = model.generate(**asked, past_key_values=kept, **{**GREEDY, **options})
        if rows == 1 and not options:
            alone = whole.generate(asked)
            torch.testing.assert_close(logits(found), logits(alone), **CLOSE)
        elif rows == 2:
            # each row as it is alone, from one row of memory
            for row in range(rows):
                one = whole.generate({n: t[row : row + 1] for n, t in asked.items()})
                torch.testing.assert_close(logits(found)[row : row + 1], logits(one), rtol=1e-3, atol=1e-4)
        else:
            again = model.generate(**asked, past_key_values=kept, **{**GREEDY, **options})
            assert torch.equal(found.sequences, again.sequences)
    assert all(torch.equal(a, b) for a, b in zip(before, held(kept), strict=True))
    if keep:
        bare = Whole(model, context, {}).generate(question(1))
        assert (logits(alone)[:, 0] - logits(bare)[:, 0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_is_read_in_parts_as_a_cache_is(kind) -> None:
    model = built(kind, "eager" if "sinks" in kind or kind == "indexed" else "sdpa")
    ids, asked = tokens(1, 12, seed=3), question(1)
    parts, usual = Memory.empty(model), hf.DynamicCache(config=model.config)
    for part in ids.split(5, dim=1):
        parts = parts.read(model, {"input_ids": part})
        model(input_ids=part, past_key_values=usual)
    parts.bind(model)
    truth = model.generate(torch.cat([ids, asked["input_ids"]], 1), past_key_values=usual, **GREEDY)
    found = model.generate(**asked, past_key_values=parts, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


@pytest.mark.parametrize("kind", ["sliding and full", "chunked", "convolutions", "linear", "both in one layer"])
def test_padding_that_a_layer_would_take_for_text_is_refused(kind) -> None:
    model = built(kind)
    kept = Memory.empty(model).read(model, {"input_ids": tokens(1, 12, seed=3)}).bind(model)
    with pytest.raises(InterventionError, match="of one length"):
        model.generate(**question(2, padding=(0, 2)), past_key_values=kept, **GREEDY)
    with pytest.raises(InterventionError, match="of one length"):
        model(**question(2, padding=(0, 2)), past_key_values=kept)
    ids = torch.cat([kept.tokens.expand(2, -1), question(2)["input_ids"]], 1)
    whole = {"input_ids": torch.nn.functional.pad(ids, (1, 0)), "attention_mask": torch.ones(2, 17, dtype=torch.long)}
    whole["attention_mask"][:, 0] = 0
    found = model.generate(**whole, past_key_values=kept, **GREEDY)
    assert torch.equal(found.sequences[:, 17:], model.generate(ids, past_key_values=kept, **GREEDY).sequences[:, 16:])


def test_a_window_that_padding_does_not_reach_takes_it() -> None:
    model = built("sliding and full", sliding_window=64)
    context = {"input_ids": tokens(1, 12, seed=3)}
    kept = Memory.empty(model).read(model, context).bind(model)
    asked = question(2, padding=(0, 2))
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    for row, skip in enumerate((0, 2)):
        ids = torch.cat([context["input_ids"], asked["input_ids"][row : row + 1, skip:]], 1)
        torch.testing.assert_close(logits(found)[row : row + 1], logits(model.generate(ids, **GREEDY)), **CLOSE)


def test_what_is_not_ours_passes_untouched() -> None:
    """Other caches on a model with a memory: static, sliding, quantized by another hand, an offloaded copy, or none."""
    model = tiny_llama()
    ids = question(1, length=9)["input_ids"]
    usual = logits(model.generate(ids, **GREEDY))
    static = logits(model.generate(ids, cache_implementation="static", **GREEDY))
    bare = logits(model.generate(ids, use_cache=False, **GREEDY))
    kept = Memory.empty(model).read(model, {"input_ids": tokens(1, 6)})
    kept = pruned(kept, random_selection(kept)).bind(model)
    assert torch.equal(logits(model.generate(ids, **GREEDY)), usual)
    assert torch.equal(logits(model.generate(ids, cache_implementation="static", **GREEDY)), static)
    assert torch.equal(logits(model.generate(ids, use_cache=False, **GREEDY)), bare)
    given = hf.DynamicCache(config=model.config)
    assert torch.equal(logits(model.generate(ids, past_key_values=given, **GREEDY)), usual)
    assert kept.is_bound


CHOICES = {"all": None, "some": 0.5, "the same in all heads": "alike"}


@pytest.mark.parametrize("fused", ["flash_attention_2", "flex_attention"], indirect=True)
@pytest.mark.parametrize("padding", [((), ()), ((0, 4), (2, 0))])
@pytest.mark.parametrize("choice", CHOICES)
def test_fused_attention(fused, padding, choice) -> None:  # noqa: F811
    """Flash attention is told of padding only, so that heads must have kept the same where there is any."""
    model = tiny_llama(implementation="eager")
    before, after = padding
    context = question(2, 10, before, seed=3)
    kept, keep = Memory.empty(model).read(model, context), {}
    if choice != "all":
        keep = random_selection(kept)
    if choice == "the same in all heads":
        keep = {layer: k[:, :1].expand_as(k).clone() for layer, k in keep.items()}
    kept, whole = pruned(kept, keep).bind(model), Whole(model, context, keep)
    asked = question(2, padding=after)
    real = asked["attention_mask"].bool()
    truth = whole.forward(asked)
    model.config._attn_implementation_internal = fused  # its setter asks for the package
    if fused == "flash_attention_2" and choice == "some":
        with pytest.raises(InterventionError, match="heads"):
            model(**asked, past_key_values=kept)
        return
    found = model(**asked, past_key_values=kept).logits
    torch.testing.assert_close(found[real], truth[real], rtol=1e-3, atol=1e-4)


def test_heads_that_kept_equally_many_need_no_mask_for_flash_attention() -> None:
    slots = torch.rand(2, 2, 8, generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :5].sort(-1).values
    assert at_slots(None, slots, None, 2, 4, flash=True) is None
    with pytest.raises(InterventionError, match="heads"):
        at_slots(torch.ones(2, 8), slots, None, 2, 4, flash=True)


@pytest.mark.parametrize("place", ["by name", "by place", "hidden states of another name"])
def test_a_mask_is_replaced_wherever_a_forward_has_it(place) -> None:
    """Attention of remote code may hand its arguments on in order; the layer's own mask stands where the other did."""
    _, kept, _ = llama_with(1)
    names = ["x" if "another" in place else "hidden_states", "attention_mask", "past_key_values"]
    cache, module = kept.cache(), SimpleNamespace(layer_idx=0)
    x, mask = torch.zeros(1, 2, 64), torch.ones(1, 1, 2, kept.length + 2, dtype=torch.bool).tril(kept.length)
    given = dict(zip(names, (x, mask, cache), strict=True))
    args, kwargs = ((x, mask, cache), {}) if place == "by place" else ((), given)
    args, kwargs = _before(names, 8, module, args, kwargs)
    found = dict(zip(names, args, strict=False)) | kwargs
    truth = torch.stack([mask[0, 0][:, slots] for slots in cache.layers[0].slots(2)[0]])
    heads = 8 // truth.shape[0]
    real = cache.layers[0].valid(2)
    truth = truth if real is None else truth & real[0][:, None]
    assert torch.equal(found["attention_mask"][0], truth.repeat_interleave(heads, 0))
    assert found[names[0]] is x
    assert found["past_key_values"] is cache


def test_a_compiled_model_runs_on_a_memory() -> None:
    model, kept, whole = llama_with(1)
    asked = question(1)
    truth = whole.forward(asked)
    compiled = torch.compile(model, backend="eager")
    found = compiled(**asked, past_key_values=kept).logits
    torch.testing.assert_close(found, truth, **CLOSE)


def test_a_bias_by_distance_is_left_alone() -> None:
    """T5 works its bias out from the number of keys: a pruned layer would shift it without a word."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 50}
    model = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, decoder_start_token_id=0)).eval()
    out = model(input_ids=torch.tensor([[3, 4, 5]]), decoder_input_ids=torch.tensor([[0, 6, 7]]), use_cache=True)
    assert prunable(model, out.past_key_values) == {}
    with pytest.raises(InterventionError, match="cannot be pruned"):
        prune(model, out.past_key_values, {0: torch.ones(1, 4, 3, dtype=torch.bool)})
