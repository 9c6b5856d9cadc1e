"""Tiny models that transformers has a tensor-parallel plan for, and prompts with a picture."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

from tests.engine.families import CLIP_VISION, IMAGE, QWEN_IDS, QWEN_VISION, ROPE, SPECIAL, text

HEADS, KV_HEADS, HEAD_DIM, LAYERS = 8, 4, 6, 3


def _llava(model_type: str, **more: Any) -> nn.Module:
    sizes = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, **SPECIAL, **more}
    config = hf.LlavaConfig(
        text_config={"model_type": model_type, **text(LAYERS, **sizes)},
        vision_config={"model_type": "clip_vision_model", **CLIP_VISION, "projection_dim": 24},
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    return hf.LlavaForConditionalGeneration(config)


def _qwen() -> nn.Module:
    config = hf.Qwen2_5_VLConfig(
        text_config=text(LAYERS, num_attention_heads=8, num_key_value_heads=4, hidden_size=64,
                         rope_parameters={**ROPE, "mrope_section": [1, 1, 2]}, **SPECIAL),
        vision_config={**QWEN_VISION, "out_hidden_size": 64, "window_size": 16, "fullatt_block_indexes": [1]},
        **QWEN_IDS,
    )  # fmt: skip
    return hf.Qwen2_5_VLForConditionalGeneration(config)


MODELS = {
    "llama": lambda: _llava("llama"),
    "mqa": lambda: _llava("llama", num_key_value_heads=1),
    "qwen2_5_vl": _qwen,
    "phi3": lambda: _llava("phi3", hidden_size=48),
    "qwen3": lambda: _llava("qwen3"),
    "gpt_neox": lambda: _llava("gpt_neox", hidden_size=48),
    "mixtral": lambda: _llava("mixtral", num_local_experts=4),
    "deepseek_v2": lambda: _llava(
        "deepseek_v2", num_key_value_heads=8, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4,
        v_head_dim=6, head_dim=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        first_k_dense_replace=1, n_group=1, topk_group=1,
    ),
}  # fmt: skip


def build(name: str) -> nn.Module:
    """A random model, in eval mode."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def inputs(name: str = "") -> dict[str, torch.Tensor]:
    """Two rows of token ids without a picture, the second one padded on the left where the model runs with a mask."""
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    if name == "mqa":  # transformers runs no mask where a key-value head is in every process
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def plan(name: str) -> dict[str, str] | None:
    """A plan other than the model's own: one key-value head cannot be cut, so every process has it."""
    layers = "model.language_model.layers.*.self_attn."
    return {f"{layers}k_proj": "replicate", f"{layers}v_proj": "replicate"} if name == "mqa" else None
