"""Where a bias stands before a norm or a scale, or has no place, the fold is right or refused: never wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

import steer
from steer import ops, sites
from steer.testing._tiny import randomise
from tests.engine.helpers import randn, tokens

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 101,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WIDTH_SITES = ("attn_out", "mlp_out", "resid_out")
ALL = ("head_out", *WIDTH_SITES)


def gpt2() -> Any:
    return hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=101, bos_token_id=1, eos_token_id=2)


def opt(before: bool = True) -> Any:
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 101}
    return hf.OPTConfig(**sizes, word_embed_proj_dim=32, do_layer_norm_before=before)


def mamba() -> Any:
    return hf.FalconMambaConfig(hidden_size=32, state_size=8, num_hidden_layers=2, vocab_size=101)


def of(kind: str, **more: Any) -> Any:
    return getattr(hf, f"{kind}Config")(**{**SIZES, **more})


# Config, the sites at which a fold is right, and the fields that it turns; everywhere else it is refused.
CASES: dict[str, tuple[Any, tuple[str, ...], set[str]]] = {
    "gpt2": (gpt2, ALL, set()),
    "opt": (opt, ALL, set()),
    "opt, norms after": (lambda: opt(before=False), ALL, set()),
    "phi": (lambda: of("Phi"), ALL, set()),
    "llama": (lambda: of("Llama"), ALL, {"attention_bias", "mlp_bias"}),
    "granite": (lambda: of("Granite", residual_multiplier=1.0), ALL, {"attention_bias", "mlp_bias"}),
    # The branch is multiplied on its way into the residual stream.
    "granite, scaled": (
        lambda: of("Granite", residual_multiplier=0.22),
        ("head_out", "attn_out", "mlp_out"),
        {"attention_bias", "mlp_bias"},
    ),
    # No MLP and no heads: the mixer's branch is the layer's last.
    "mamba": (mamba, ("attn_out", "resid_out"), {"use_bias"}),
    "qwen3": (lambda: of("Qwen3"), ("head_out", "attn_out"), {"attention_bias"}),
    "qwen2": (lambda: of("Qwen2"), (), set()),
    "mistral": (lambda: of("Mistral"), (), set()),
    # A norm follows each branch; heads are before it.
    "gemma2": (lambda: of("Gemma2"), ("head_out",), {"attention_bias"}),
    "gemma3": (lambda: of("Gemma3Text"), ("head_out",), {"attention_bias"}),
    "mixtral": (lambda: of("Mixtral", num_local_experts=2), (), set()),
    "qwen3 moe": (
        lambda: of("Qwen3Moe", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16),
        ("head_out", "attn_out"),
        {"attention_bias"},
    ),
}


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(CASES[name][0]()).float().eval().requires_grad_(False)
    randomise(model)
    return model


def shift(site: str) -> steer.Intervention:
    vector = randn(8 if site == "head_out" else 32, scale=0.3)
    return steer.Intervention(getattr(sites, site)(), ops.Add(vector))


@pytest.mark.parametrize("name", CASES)
def test_right_or_refused(name, tmp_path):
    model, (_, right, fields) = tiny(name), CASES[name]
    turned: set[str] = set()
    for site in ALL:
        item = shift(site)
        if site not in right:
            with pytest.raises(steer.SteerError, match=r"bias|stands between|with heads"):
                steer.fold(model, item)
            continue
        folded = steer.fold(model, item)
        turned |= set(folded.switches)
        folded.save_pretrained(tmp_path / site)
        made = hf.AutoModelForCausalLM.from_pretrained(tmp_path / site)
        with torch.no_grad(), steer.attach(model, item):
            wanted = model(tokens()).logits
        off = (made(tokens()).logits - wanted).abs().max() / wanted.abs().max()
        assert off <= 1e-5, site
    assert turned == fields


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_fold_of_a_shift_too_small_to_see_is_refused_all_the_same(dtype):
    """At this size the outputs move by less than what bf16 rounds away."""
    model = tiny("granite, scaled").to(dtype)
    item = steer.Intervention(sites.resid_out(), ops.Add(randn(32), 1e-5))
    with pytest.raises(steer.errors.InterventionError, match="multiplied by"):
        steer.fold(model, item)
