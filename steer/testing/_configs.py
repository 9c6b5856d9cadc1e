"""Every model class that steer must map and how to build each at full size: the one table of per-architecture data."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto

MAPPINGS = (
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

# Classes with a tower that is a timm model.
NEEDS_TIMM = (
    "FastVlmForConditionalGeneration",
    "Gemma3nForConditionalGeneration",
    "PerceptionLMForConditionalGeneration",
)

HALF_ROTARY = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "mrope_section": [8, 12, 12],
}

# Arguments of the config for classes whose default config does not build, or builds without one of the towers that
# its checkpoints have.
ARGUMENTS: dict[str, dict[str, Any]] = {
    # The default vision tower has 14 heads, which do not divide its 1152 features.
    "AyaVisionForConditionalGeneration": {
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "patch_size": 14,
            "image_size": 364,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "vision_use_head": False,
        }
    },
    "ChameleonForConditionalGeneration": {"vocabulary_map": {"<image>": 8711}},
    "CohereCompassForConditionalGeneration": {
        "text_config": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
    },
    "DeepseekOcr2ForConditionalGeneration": {
        "text_config": {
            "hidden_size": 1280,
            "intermediate_size": 6848,
            "moe_intermediate_size": 896,
            "num_hidden_layers": 12,
            "num_attention_heads": 10,
            "mlp_layer_types": ["dense"] + ["sparse"] * 11,
            "num_experts_per_tok": 6,
        },
        "vision_config": {
            "encoder_config": {
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
            }
        },
    },
    "DiffusionGemmaForBlockDiffusion": {
        "text_config": {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    },
    "Emu3ForConditionalGeneration": {"vocabulary_map": {"<image>": 151646, "<|extra_200|>": 151846}},
    "Gemma4ForConditionalGeneration": {"vision_config": {}, "audio_config": {}},
    # The sections of the default rotary embedding add up only when half of each head is rotated, as in the checkpoints.
    "Glm4vForConditionalGeneration": {"text_config": {"rope_parameters": HALF_ROTARY}},
    "Glm46VForConditionalGeneration": {"text_config": {"rope_parameters": HALF_ROTARY}},
    "Glm4vMoeForConditionalGeneration": {"text_config": {"head_dim": 128, "rope_parameters": HALF_ROTARY}},
    "Gemma4UnifiedForConditionalGeneration": {"vision_config": {}, "audio_config": {}},
    "Granite4VisionForConditionalGeneration": {
        "downsample_rate": "4/8",
        "deepstack_layer_map": [[-19, 9], [-13, 6], [-7, 3], [-1, 0]],
    },
    "HunYuanVLForConditionalGeneration": {
        "text_config": {
            "head_dim": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [16, 16, 16, 16]},
        }
    },
    # By default a head has 73 features, which no rotary embedding divides.
    "Qwen3OmniMoeThinkerForConditionalGeneration": {
        "text_config": {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128}
    },
    "Step3p7ForConditionalGeneration": {"text_config": {"sliding_window": 512}},
    "Qwen4ExpForConditionalGeneration": {
        "text_config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 256,
            "indexer_budget": 2048,
            "indexer_compress_ratio": 4,
        }
    },
}


# What the generic shrinker and the generic inputs of the tests at tiny size cannot know: changes to the shrunk config,
# and arguments of the forward.
TINY: dict[str, dict[str, Any]] = {
    "AlignModel": {
        "config": {
            "projection_dim": 80,
            "vision_config": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 80},
        }
    },
    "AriaForConditionalGeneration": {"config": {"projector_patch_to_query_dict": {16: 4}}},
    "Blip2ForImageTextRetrieval": {"config": {"qformer_config": {"use_qformer_text_input": True}}},
    "Emu3ForConditionalGeneration": {
        "config": {
            "image_token_id": 99,
            # Every code of the quantised picture is a token of its own.
            "vocabulary_map": {
                "<image>": 99,
                "<|extra_200|>": 98,
                **{f"<|visual token {code:06}|>": code % 96 for code in range(128)},
            },
            "vq_config": {"hidden_size": 128},
        }
    },
    "Granite4VisionForConditionalGeneration": {
        "config": {
            "deepstack_layer_map": [[-2, 1], [-1, 0]],
            "spatial_target_layers": [1, 2],
            "downsample_rate": "2/4",
        }
    },
    # With fewer layers than it has scales to plan for it asks scipy.
    "InklingForConditionalGeneration": {"config": {"vision_config": {"n_layers": 5, "patch_size": 4}}},
    # The last layer's output beside that of one layer between.
    "MllamaForConditionalGeneration": {"config": {"vision_config": {"vision_output_dim": 128}}},
    # Its pictures say for each token which patches it is made of.
    "Molmo2ForConditionalGeneration": {
        "config": {"vision_config": {"image_size": [56, 56], "num_position_embeddings": 16}},
        "inputs": {
            "pixel_values": torch.linspace(-2, 2, 16 * 588).sin().reshape(1, 16, 588),
            "image_token_pooling": torch.arange(16).reshape(4, 4),
            "image_grids": torch.tensor([[2, 2, 0, 0]]),
            "image_num_crops": torch.tensor([1]),
        },
    },
    # Four merged patches beside one another.
    "MuseGlimmerForConditionalGeneration": {"config": {"out_hidden_size": 256}},
    "MuseSparkForConditionalGeneration": {"config": {"out_hidden_size": 256}},
    "PI0ForConditionalGeneration": {"inputs": {"state": torch.linspace(-1, 1, 32)[None]}},
    "Qwen2_5OmniThinkerForConditionalGeneration": {"config": {"vision_start_token_id": 98}},
    "Qwen3OmniMoeThinkerForConditionalGeneration": {"config": {"vision_start_token_id": 98}},
}


@cache
def model_types() -> dict[str, str]:
    """The model type of each class of the two mappings, by the class's name; nothing is imported for it."""
    found: dict[str, str] = {}
    for mapping in MAPPINGS:
        for model_type, names in mapping.items():
            found.setdefault(names if isinstance(names, str) else names[0], model_type)
    return found


def class_named(name: str) -> type[nn.Module]:
    """The class of transformers with this name."""
    found: type[nn.Module] = getattr(transformers, name)
    return found


def every_class() -> list[type[nn.Module]]:
    """The distinct model classes of transformers' image-text-to-text and zero-shot image classification mappings."""
    return [class_named(name) for name in model_types()]


def missing(cls: str) -> str | None:
    """Why the class with this name cannot be built here, or None."""
    if cls in NEEDS_TIMM and importlib.util.find_spec("timm") is None:
        return f"{cls} needs timm, which is not installed"
    return None


def full_config(cls: type[nn.Module]) -> PretrainedConfig:
    """A config of full size from which the class builds."""
    config_class = CONFIG_MAPPING[model_types()[cls.__name__]]
    return config_class(**ARGUMENTS.get(cls.__name__, {}))


def full_model(cls: type[nn.Module]) -> nn.Module:
    """The model at full size on the meta device: shapes without weights."""
    with torch.device("meta"):
        return cls._from_config(full_config(cls)).eval()  # type: ignore[attr-defined]
