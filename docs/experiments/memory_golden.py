"""What kvpress scores and keeps on a tiny random Llama: the tensors in tests/golden/kvpress.

kvpress does not run on the transformers that steer needs, so this runs in an environment of its own, without steer:

    python3.11 -m venv env && env/bin/pip install torch==2.13.0
    env/bin/pip install kvpress==0.5.5 "transformers>=5.2,<5.3"
    env/bin/python docs/experiments/memory_golden.py            # seconds on one core; rewrites the gold

Every press sees the same prefill: what one does to the cache of a layer comes after that layer's attention, so queries,
keys and values are the same for all and are stored once (checked below). Running it again gives the same tensors; the
order of a file's header may change.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

OUT = Path(__file__).parents[2] / "tests" / "golden" / "kvpress"
SEED, TOKENS, RATIO = 0, 64, 0.5
# A wider spread of weights than a model starts with: attention that is nearly uniform would hide mistakes.
CONFIG: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.12,
    "attention_dropout": 0.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
WINDOW, KERNEL = 8, 5
# Expected attention averages RoPE over this many positions to come.
FUTURE = 32
BUDGETS = [(t, ratio, w, beta) for t in (64, 200) for ratio in (0.25, 0.5, 0.8) for w in (8, 32) for beta in (2, 20)]


def presses() -> dict[str, Any]:
    """Name -> press, all at the same ratio."""
    import kvpress

    return {
        "snapkv": kvpress.SnapKVPress(RATIO, window_size=WINDOW, kernel_size=KERNEL),
        "tova": kvpress.TOVAPress(RATIO),
        "observed_attention": kvpress.ObservedAttentionPress(RATIO),
        "knorm": kvpress.KnormPress(RATIO),
        "keydiff": kvpress.KeyDiffPress(RATIO),
        "streaming_llm": kvpress.StreamingLLMPress(RATIO, n_sink=4),
        "expected_attention": kvpress.ExpectedAttentionPress(RATIO, n_future_positions=FUTURE),
        "expected_attention_mean": kvpress.ExpectedAttentionPress(
            RATIO, n_future_positions=FUTURE, use_covariance=False, use_vnorm=False
        ),
        "pyramidkv": kvpress.PyramidKVPress(RATIO, window_size=WINDOW, kernel_size=KERNEL),
        "ada_snapkv": kvpress.AdaKVPress(kvpress.SnapKVPress(RATIO, window_size=WINDOW, kernel_size=KERNEL)),
        "ada_knorm": kvpress.AdaKVPress(kvpress.KnormPress(RATIO)),
        "ada_expected_attention": kvpress.AdaKVPress(
            kvpress.ExpectedAttentionPress(RATIO, n_future_positions=FUTURE), alpha_safeguard=0.5
        ),
    }


def build(attention: str) -> Any:
    """The same random Llama, fp32, with the attention named."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    return LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation=attention)).eval()


def prefill_states(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Per layer q, k, v as attention gets them, and q before RoPE."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask
    from transformers.models.llama.modeling_llama import eager_attention_forward

    found: dict[str, torch.Tensor] = {}

    def recording(module, query, key, value, attention_mask, **kwargs):
        for name, tensor in (("q", query), ("k", key), ("v", value)):
            found[f"{name}.{module.layer_idx}"] = tensor.detach().clone().contiguous()
        return eager_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("recording", recording)
    AttentionMaskInterface.register("recording", eager_mask)
    model = build("recording")

    def before_rope(layer):
        def hook(module, args, output):
            heads = output.unflatten(-1, (CONFIG["num_attention_heads"], CONFIG["head_dim"]))
            found[f"q_before_rope.{layer}"] = heads.transpose(1, 2).detach().clone().contiguous()

        return hook

    for layer, block in enumerate(model.model.layers):
        block.self_attn.q_proj.register_forward_hook(before_rope(layer))
    model(ids)
    return found


def run(press: Any, model: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], Any]:
    """The scores that a press gave, layer by layer, and the cache it left."""
    from transformers import DynamicCache

    scorer = getattr(press, "press", press)
    original, scores = scorer.score, []

    def score(*args):
        result = original(*args)
        scores.append(result.clone())  # AdaKV overwrites the scores of what it keeps safe
        return result

    scorer.score = score
    cache = DynamicCache()
    with press(model):
        model(ids, past_key_values=cache)
    return scores, cache


def kept_rows(stored: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Which rows of full (1, H_kv, T, d) the cache still has: (1, H_kv, n), ascending."""
    same = (stored.unsqueeze(3) == full.unsqueeze(2)).all(-1)
    assert (same.sum(-1) == 1).all(), "a stored key is not exactly one of the model's"
    return same.int().argmax(-1).sort(-1).values.to(torch.int32)


def budgets(press_class: Any) -> list[dict[str, Any]]:
    """PyramidKV's number of keys per layer over lengths, ratios, windows and steepness, for 4 and 7 layers."""
    rows = []
    for tokens, ratio, window, beta in BUDGETS:
        press = press_class(ratio, window_size=window, beta=beta)
        for layers in (4, 7):
            config = SimpleNamespace(num_hidden_layers=layers)
            kept = [press.get_layer_budget(SimpleNamespace(config=config, layer_idx=i), tokens) for i in range(layers)]
            rows.append({"tokens": tokens, "ratio": ratio, "window": window, "beta": beta, "kept": kept})
    return rows


def write(tensors: dict[str, torch.Tensor], name: str, **about: str) -> None:
    """One safetensors file, with where it comes from."""
    import kvpress
    import transformers

    version = getattr(kvpress, "__version__", None) or __import__("importlib.metadata").metadata.version("kvpress")
    about = {"kvpress": version, "transformers": transformers.__version__, "torch": torch.__version__, **about}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, OUT / name, metadata=about)
    (OUT / name).chmod(0o644)


def main() -> None:
    import kvpress

    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    ids = torch.randint(0, CONFIG["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        states = prefill_states(ids)
        write({**states, "ids": ids}, "states.safetensors", config=json.dumps(CONFIG), future=str(FUTURE))
        for name, press in presses().items():
            # AdaKV refuses eager attention; with SDPA SnapKV makes its window's attention itself.
            model = build("sdpa" if name.startswith("ada_") else "eager")
            scores, cache = run(press, model, ids)
            found = {}
            for layer, score in enumerate(scores):
                found[f"scores.{layer}"] = score
                full, stored = states[f"k.{layer}"], cache.layers[layer].keys
                if name.startswith("ada_"):
                    assert torch.allclose(stored, full, atol=1e-4), f"{name}: another prefill"
                    _, heads, places = model.model.layers[layer].self_attn.masked_key_indices
                    keep = torch.ones(1, *score.shape[1:], dtype=torch.bool)
                    keep[0, heads, places] = False
                    found[f"keep.{layer}"] = keep
                else:
                    found[f"kept.{layer}"] = kept_rows(stored, full)
            write(found, f"{name}.safetensors", press=repr(press))
            print(f"{name:26s} {len(scores)} layers of scores {tuple(scores[0].shape)}")
    rows = [json.dumps(row) for row in budgets(kvpress.PyramidKVPress)]
    (OUT / "pyramidkv_budgets.json").write_text("[\n  " + ",\n  ".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
