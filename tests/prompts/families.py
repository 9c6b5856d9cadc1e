"""Tiny two-stream models of each architecture with random weights, and what is known of each without asking steer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import nn

WORDS = [
    "x", "a", "an", "the", "photo", "of", "picture", "drawing", "cat", "dog", "airplane", "fire", "extinguisher", "red",
    "apple", "big", "small", ".", "good", "bad",
]  # fmt: skip
SPECIAL = ["<pad>", "<unk>", "<s>"]
SLOTS, SIZE, PATCH = 24, 16, 4
VOCAB = len(SPECIAL) + len(WORDS) + 1
EOS = VOCAB - 1
IDS = {"bos_token_id": 2, "eos_token_id": EOS, "pad_token_id": 0}
WIDTH = 20

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": SLOTS,
    **IDS,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": PATCH,
}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
# Positions are counted from behind the id of the padding.
ROBERTA = {**TEXT, **QUIET, "max_position_embeddings": SLOTS + 1}


def clip(activation: str = "quick_gelu") -> nn.Module:
    config = hf.CLIPConfig(
        text_config={**TEXT, "hidden_act": activation, "projection_dim": WIDTH},
        vision_config={**VISION, "hidden_act": activation, "projection_dim": WIDTH},
        projection_dim=WIDTH,
    )
    return hf.CLIPModel(config)


def siglip() -> nn.Module:
    model = hf.SiglipModel(hf.SiglipConfig(text_config={**TEXT, "projection_size": 24}, vision_config=VISION))
    return _with_bias(model)


def siglip2() -> nn.Module:
    seeing = {key: value for key, value in VISION.items() if key != "image_size"} | {
        "num_patches": (SIZE // PATCH) ** 2
    }
    model = hf.Siglip2Model(hf.Siglip2Config(text_config={**TEXT, "projection_size": 24}, vision_config=seeing))
    return _with_bias(model)


def _with_bias(model: Any) -> nn.Module:
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    return model


def metaclip_2() -> nn.Module:
    parts = {"text_config": {**TEXT, "projection_dim": WIDTH}, "vision_config": {**VISION, "projection_dim": WIDTH}}
    return hf.MetaClip2Model(hf.MetaClip2Config(**parts, projection_dim=WIDTH))


def altclip() -> nn.Module:
    text = {**ROBERTA, "project_dim": 28}
    config = hf.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=WIDTH)
    return hf.AltCLIPModel(config)


def chinese_clip() -> nn.Module:
    config = hf.ChineseCLIPConfig(text_config={**TEXT, **QUIET}, vision_config=VISION, projection_dim=WIDTH)
    return hf.ChineseCLIPModel(config)


def align() -> nn.Module:
    seeing = {
        "image_size": SIZE, "kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 16],
        "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 2], "width_coefficient": 1.0,
        "depth_coefficient": 1.0, "hidden_dim": 16,
    }  # fmt: skip
    words = {**TEXT, **QUIET}
    return hf.AlignModel(
        hf.AlignConfig(text_config=words, vision_config=seeing, projection_dim=16, temperature_init_value=0.1)
    )


def clipseg() -> nn.Module:
    config = hf.CLIPSegConfig(text_config=TEXT, vision_config=VISION, projection_dim=WIDTH, extract_layers=[0, 1])
    return hf.CLIPSegModel(config)


def tipsv2() -> nn.Module:
    seeing = {**VISION, "mlp_ratio": 2, "num_register_tokens": 2}
    text = {**TEXT, "hidden_size": 24, "num_attention_heads": 4}  # both halves end at the width of their towers
    return hf.Tipsv2Model(hf.Tipsv2Config(text_config=text, vision_config=seeing, temperature_init_value=0.05))


def _blip() -> Any:
    text = {**TEXT, "encoder_hidden_size": 24, "projection_dim": WIDTH, "is_decoder": False, "sep_token_id": EOS}
    return hf.BlipConfig(text_config=text, vision_config=VISION, projection_dim=WIDTH, image_text_hidden_size=WIDTH)


def blip() -> nn.Module:
    return hf.BlipForImageTextRetrieval(_blip())


def blip_model() -> nn.Module:
    return hf.BlipModel(_blip())


def aimv2() -> nn.Module:
    return hf.Aimv2Model(hf.Aimv2Config(text_config=TEXT, vision_config=VISION, projection_dim=WIDTH))


def groupvit() -> nn.Module:
    seeing = {
        **VISION, "depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 2],
    }  # fmt: skip
    config = hf.GroupViTConfig(
        text_config=TEXT, vision_config=seeing, projection_dim=WIDTH, projection_intermediate_dim=32
    )
    return hf.GroupViTModel(config)


def vision_text_dual_encoder() -> nn.Module:
    config = hf.VisionTextDualEncoderConfig.from_vision_text_configs(
        hf.ViTConfig(**VISION, **QUIET), hf.BertConfig(**TEXT, **QUIET), projection_dim=WIDTH
    )
    return hf.VisionTextDualEncoderModel(config)


def owlvit() -> nn.Module:
    return hf.OwlViTModel(hf.OwlViTConfig(text_config=TEXT, vision_config=VISION, projection_dim=WIDTH))


def flava() -> nn.Module:
    small = {**VISION, **QUIET}
    config = hf.FlavaConfig(
        image_config=small,
        text_config={**{k: v for k, v in TEXT.items() if "os_" not in k}, **QUIET},
        multimodal_config={k: small[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", *QUIET)},
        image_codebook_config={"hidden_size": 8, "vocab_size": 16, "num_groups": 1, "num_blocks_per_group": 1},
        projection_dim=WIDTH,
    )
    return hf.FlavaModel(config)


def blip_2() -> nn.Module:
    words = {k: v for k, v in TEXT.items() if k not in ("max_position_embeddings", *IDS)}
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config={**words, **QUIET, "encoder_hidden_size": 24, "use_qformer_text_input": True},
        text_config={"model_type": "opt", **words, "ffn_dim": 48, "word_embed_proj_dim": 32},
        num_query_tokens=4,
        image_text_hidden_size=WIDTH,
    )
    return hf.Blip2ForImageTextRetrieval(config)


def random_weights(model: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Weights large enough that every part of a model matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.ndim > 1 or "class_embedding" in name:
                one.copy_(std * torch.randn(one.shape, generator=generator))
    return model.eval().requires_grad_(False)


def _exponential(model: Any) -> tuple[float, float]:
    return math.exp(float(model.logit_scale)), 0.0


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        make: builds the model.
        rule: model -> (scale, bias) of its scores, from its own parameters.
        text, vision: the path of a tower's list of layers; "" for a vision tower that can be given no more rows.
        embeddings: the path of the module whose output the vision prompts stand behind.
        table: the path of the token embeddings.
        options: of the tokenizer.
        packed: pictures are lists of patches of grids of different sizes.
        call: arguments of the forward besides texts and pictures.
        scores: the field of the output with the scores.
    """

    make: Callable[[], nn.Module]
    rule: Callable[[Any], tuple[float, float]] = _exponential
    text: str = "text_model.encoder.layers"
    vision: str = "vision_model.encoder.layers"
    embeddings: str = "vision_model.embeddings"
    table: str = "text_model.embeddings.token_embedding"
    options: dict[str, Any] = field(default_factory=dict)
    packed: bool = False
    call: dict[str, Any] = field(default_factory=dict)
    scores: str = "logits_per_image"


_BERT = "text_model.embeddings.word_embeddings"
_SIGLIP: dict[str, Any] = {
    "rule": lambda model: (math.exp(float(model.logit_scale)), float(model.logit_bias)),
    "options": {"first": None, "mask": False},
}
_BY_TEMPERATURE: dict[str, Any] = {"rule": lambda model: (1 / float(model.temperature), 0.0)}

FAMILIES: dict[str, Family] = {
    "clip": Family(clip),
    "siglip": Family(siglip, **_SIGLIP),
    "siglip2": Family(siglip2, packed=True, **_SIGLIP),
    "metaclip_2": Family(metaclip_2),
    "altclip": Family(altclip, text="text_model.roberta.encoder.layers", table=f"text_model.roberta.{_BERT[11:]}"),
    "chinese_clip": Family(chinese_clip, text="text_model.encoder.layer", table=_BERT, options={"types": True}),
    "align": Family(
        align, text="text_model.encoder.layer", table=_BERT, vision="", options={"types": True}, **_BY_TEMPERATURE
    ),
    "clipseg": Family(clipseg),
    "tipsv2": Family(tipsv2, vision="vision_model.encoder.layer", **_BY_TEMPERATURE),
    "blip": Family(
        blip,
        rule=lambda model: (1.0, 0.0),
        text="text_encoder.encoder.layer",
        table="text_encoder.embeddings.word_embeddings",
        call={"use_itm_head": False},
        scores="itm_score",
    ),
    "blip_model": Family(blip_model, text="text_model.encoder.layer", table=_BERT),
    "aimv2": Family(aimv2),
    "groupvit": Family(groupvit, vision=""),
    "owlvit": Family(owlvit),
    "vision_text_dual_encoder": Family(
        vision_text_dual_encoder,
        text="text_model.encoder.layer",
        table=_BERT,
        vision="vision_model.layers",
        options={"types": True},
    ),
}
OTHERS = {"flava": flava, "blip_2": blip_2}
"""Models of pictures and texts that give no score for each pair, or not by the cosine of two features."""
