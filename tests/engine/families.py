"""One tiny model of each kind of VLM, with a prompt that holds a picture, and how to run a sequence in one forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

IMAGE, VOCAB = 98, 99
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 97, "vision_start_token_id": 96, "vision_end_token_id": 95}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
}
CLIP_VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 8,
}


def text(layers: int = 2, **more: Any) -> dict[str, Any]:
    """A tiny text tower with grouped-query attention."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "initializer_range": 0.3,
        **more,
    }


def llava() -> nn.Module:
    config = hf.LlavaConfig(
        text_config={"model_type": "llama", **text()},
        vision_config={"model_type": "clip_vision_model", **CLIP_VISION, "projection_dim": 24},
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    return hf.LlavaForConditionalGeneration(config)


def qwen2_5_vl() -> nn.Module:
    config = hf.Qwen2_5_VLConfig(
        text_config=text(rope_parameters={**ROPE, "mrope_section": [1, 1, 2]}, **SPECIAL),
        vision_config={**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
        **QWEN_IDS,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def mllama() -> nn.Module:
    config = hf.MllamaConfig(
        text_config=text(4, cross_attention_layers=[1, 3], rope_parameters=ROPE, **SPECIAL),
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
            "intermediate_layers_indices": [0],
            "vision_output_dim": 48,
        },
        image_token_index=IMAGE,
    )
    model = hf.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if "gate" in name:
            nn.init.constant_(parameter, 0.7)
    return model


def qwen3_5() -> nn.Module:
    rope = {**ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    linear = {f"linear_{n}": v for n, v in (("num_key_heads", 2), ("num_value_heads", 4))}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    config = hf.Qwen3_5Config(
        text_config=text(4, head_dim=8, rope_parameters=rope, initializer_range=0.15, **linear, **SPECIAL),
        vision_config={**QWEN_VISION, "num_position_embeddings": 16},
        **QWEN_IDS,
    )
    return hf.Qwen3_5ForConditionalGeneration(config)


def florence2() -> nn.Module:
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 48))}
    config = hf.Florence2Config(
        text_config={
            "d_model": 32,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            **sides,
            "vocab_size": VOCAB,
            "init_std": 0.3,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "max_position_embeddings": 64,
        },
        vision_config={
            "embed_dim": [16, 32],
            "depths": [1, 1],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "patch_size": [3, 3],
            "patch_stride": [4, 2],
            "patch_padding": [1, 1],
            "patch_prenorm": [False, True],
            "window_size": 4,
            "projection_dim": 32,
            "max_temporal_embeddings": 4,
            "max_position_embeddings": 8,
        },
        image_token_id=IMAGE,
    )
    return hf.Florence2ForConditionalGeneration(config)


def blip() -> nn.Module:
    words = {k: v for k, v in text().items() if k != "num_key_value_heads"}
    config = hf.BlipConfig(
        text_config={
            **words,
            **SPECIAL,
            "sep_token_id": IMAGE,
            "encoder_hidden_size": 24,
            "projection_dim": 16,
            "max_position_embeddings": 64,
        },
        vision_config=CLIP_VISION,
    )
    return hf.BlipForConditionalGeneration(config)


def clip() -> nn.Module:
    words = {k: v for k, v in text().items() if k != "num_key_value_heads"}
    config = hf.CLIPConfig(
        text_config={**words, **SPECIAL, "max_position_embeddings": 20}, vision_config=CLIP_VISION, projection_dim=16
    )
    return hf.CLIPModel(config)


@dataclass(frozen=True)
class Family:
    """A model and how to feed it.

    Attributes:
        build: makes the model.
        prefix: the token ids that stand for the picture, before the words.
        picture: makes the inputs of one picture.
        registry: whether its text attention goes through transformers' registry.
    """

    build: Callable[[], nn.Module]
    prefix: tuple[int, ...]
    picture: Callable[[torch.Generator], dict[str, torch.Tensor]]
    registry: bool = True

    def model(self, implementation: str = "sdpa") -> nn.Module:
        torch.manual_seed(0)
        model = self.build().eval().requires_grad_(False)
        if self.registry:
            model.set_attn_implementation(implementation)
        return model

    def prompt(self, words: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
        """One prompt: a picture and some words."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.cat([torch.tensor(self.prefix), torch.randint(3, 90, (words,), generator=generator)])[None]
        return {"input_ids": ids.long(), "attention_mask": torch.ones_like(ids), **self.picture(generator)} | _kinds(
            self, ids
        )


def _kinds(family: Family, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    if 96 in family.prefix:
        return {"mm_token_type_ids": (ids == IMAGE).long()}
    if family.build is mllama:
        return {"cross_attention_mask": torch.ones(*ids.shape, 1, 1, dtype=torch.long)}
    return {}


def _pixels(*shape: int) -> Callable[[torch.Generator], dict[str, torch.Tensor]]:
    return lambda generator: {"pixel_values": torch.randn(*shape, generator=generator)}


def _qwen_picture(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(16, 96, generator=generator), "image_grid_thw": torch.tensor([[1, 4, 4]])}


def _mllama_picture(generator: torch.Generator) -> dict[str, torch.Tensor]:
    one = torch.ones(1, 1, dtype=torch.long)
    pixels = torch.randn(1, 1, 1, 3, 16, 16, generator=generator)
    return {"pixel_values": pixels, "aspect_ratio_ids": one, "aspect_ratio_mask": one[None]}


FAMILIES = {
    "llava": Family(llava, (5, *[IMAGE] * 4), _pixels(1, 3, 16, 16)),
    "qwen2_5_vl": Family(qwen2_5_vl, (5, 96, *[IMAGE] * 4, 95), _qwen_picture),
    "mllama": Family(mllama, (IMAGE, 5), _mllama_picture),
    "qwen3_5": Family(qwen3_5, (5, 96, *[IMAGE] * 4, 95), _qwen_picture),
    "florence2": Family(florence2, (IMAGE,) * 17, _pixels(1, 3, 32, 32)),
    "blip": Family(blip, (1,), _pixels(1, 3, 16, 16), registry=False),
}


def whole(family: Family, inputs: dict[str, torch.Tensor], sequence: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of one forward over a prompt and what was written after it, for as many rows as `sequence` has."""
    rows = sequence.shape[0] // inputs["input_ids"].shape[0]
    given = {name: torch.cat([t] * rows) for name, t in inputs.items()} if rows > 1 else dict(inputs)
    if family.build is florence2:
        return {**given, "decoder_input_ids": sequence}
    more = sequence.shape[1] - given["attention_mask"].shape[1]
    given["attention_mask"] = torch.nn.functional.pad(given["attention_mask"], (0, more), value=1)
    if "mm_token_type_ids" in given:
        given["mm_token_type_ids"] = torch.nn.functional.pad(given["mm_token_type_ids"], (0, more))
    if "cross_attention_mask" in given:
        given["cross_attention_mask"] = torch.ones(*sequence.shape, 1, 1, dtype=torch.long)
    return {**given, "input_ids": sequence}
