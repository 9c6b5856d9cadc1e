"""Inputs for real forwards of whole models and of their parts on the meta device, for record_truth.py."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

TOKENS = 12


def floats(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def ints(*shape: int) -> torch.Tensor:
    """Integers stay on the CPU: models look at their values."""
    return torch.zeros(shape, dtype=torch.long)


def setting(config: Any, *names: str, default: int = 0) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int) and value:
            return value
    return default


def guesses(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs for a part that is a model of its own, from the names in its signature and the sizes in its config."""
    config = module.config
    names = list(inspect.signature(module.forward).parameters)
    channels = setting(config, "num_channels", "in_channels", "in_chans", default=3)
    patch = setting(config, "patch_size", "spatial_patch_size", default=16)
    times = setting(config, "temporal_patch_size", default=1)
    side = setting(config, "image_size", "crop_size", default=4 * patch)
    width = setting(config, "hidden_size", "d_model", "embed_dim", "n_embd")
    mels = setting(config, "num_mel_bins", "n_mels", "feature_size", "input_feat_size", default=80)
    side_patches = 8
    count = side_patches**2
    grid = torch.tensor([[1, side_patches, side_patches]])
    frames = setting(config, "num_frames", default=4)
    wide = floats(1, 9, setting(config, "encoder_hidden_size", "cross_attention_hidden_size", default=width))
    positions = torch.stack(torch.meshgrid(torch.arange(side_patches), torch.arange(side_patches), indexing="ij"), -1)
    options: dict[str, list[Any]] = {
        "input_ids": [ints(1, TOKENS)],
        "decoder_input_ids": [ints(1, TOKENS)],
        "inputs_embeds": [floats(1, TOKENS, width)],
        "query_embeds": [floats(1, TOKENS, width)],
        "encoder_hidden_states": [wide],
        "cross_attention_states": [wide],
        "flattened_patches": [floats(1, count, channels * patch * patch + 2)],
        "merge_sizes": [torch.tensor([1])],
        "encoder_attention_mask": [None],
        "pixel_values": [
            floats(1, channels, side, side),
            floats(1, channels, 4 * patch, 4 * patch),
            floats(count, channels * times * patch * patch),
            floats(1, count, channels * patch * patch),
            floats(count, channels, patch, patch),
            floats(1, channels, patch, count * patch),
            floats(1, count, channels, patch, patch),
            floats(1, (side // patch) ** 2, channels * patch * patch),
            floats(1, channels, 1024, 1024),
            floats(1, 1, channels, side, side),
            floats(1, 1, 4, channels, side, side),
            floats(1, 4, channels, side, side),
        ],
        "hidden_states": [
            floats(count, channels * times * patch * patch),
            floats(1, count, width),
            floats(count, width),
            floats(1, channels, side, side),
        ],
        "input_features": [
            floats(1, mels, 2 * setting(config, "max_source_positions", default=100)),
            floats(mels, 200),
            floats(1, 200, mels),
        ],
        "feature_lens": [torch.tensor([200])],
        "aftercnn_lens": [torch.tensor([100])],
        "input_features_mask": [torch.ones(1, 200, dtype=torch.bool)],
        "grid_thw": [grid],
        "image_grid_thw": [grid],
        "grid_hws": [torch.tensor([[side_patches, side_patches]])],
        "image_grid_hws": [torch.tensor([[side_patches, side_patches]])],
        "spatial_shapes": [torch.tensor([[side_patches, side_patches]])],
        "target_sizes": [torch.tensor([[side_patches, side_patches]])],
        "pixel_attention_mask": [torch.ones(1, count, dtype=torch.long)],
        "attention_mask": [None, torch.ones(1, TOKENS, dtype=torch.long), torch.ones(1, count, dtype=torch.long)],
        "image_sizes": [[(4 * patch, 4 * patch)], [(side, side)]],
        "pixel_position_ids": [positions.reshape(1, count, 2)],
        "patch_positions": [positions.reshape(1, count, 2)],
        "aspect_ratio_ids": [ints(1, 1) + 1],
        "aspect_ratio_mask": [torch.ones(1, 1, 4)],
        "pixel_values_videos": [floats(1, frames, channels, side, side)],
        "bbox": [torch.zeros(1, TOKENS, 4)],
    }
    known = [name for name in names if name in options]
    if "inputs_embeds" in known and "input_ids" in known:
        known.remove("inputs_embeds")
    if "input_ids" in known:
        alone = [name for name in known if name in ("input_ids", "decoder_input_ids", "bbox")]
        crossed = [name for name in known if name in ("encoder_hidden_states", "cross_attention_states")]
        for tokens in (alone + crossed, alone):
            yield {name: options[name][0] for name in tokens}
    for values in itertools.islice(itertools.product(*(options[name] for name in known)), 100):
        yield {name: value for name, value in zip(known, values, strict=True) if value is not None}


# Parts that the guesses do not reach: arguments for one forward each.
CALLS: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
    "AriaForConditionalGeneration": {
        "model.multi_modal_projector": lambda: {"key_value_states": floats(1, 1225, 1152)}
    },
    "Kosmos2ForConditionalGeneration": {"image_to_text_projection": lambda: {"features": floats(1, TOKENS, 1024)}},
    "Kosmos2_5ForConditionalGeneration": {"image_to_text_projection": lambda: {"features": floats(1, TOKENS, 1536)}},
    "AltCLIPModel": {"text_model": lambda: {"input_ids": ints(1, TOKENS), "position_ids": ints(1, TOKENS)}},
    "Dots3NoteForConditionalGeneration": {
        "model.audio_tower": lambda: {
            "input_features": floats(1, 128, 200),
            "chunk_sample_lengths": torch.tensor([32000]),
        }
    },
    "Emu3ForConditionalGeneration": {
        "model.vqmodel.encoder": lambda: {"pixel_values": floats(1, 4, 3, 64, 64)},
        "model.vqmodel.decoder": lambda: {
            "hidden_states": floats(1, 1, 4, 8, 8),
            "quant_states": floats(1, 1, 4, 8, 8),
        },
    },
    "EvollaForProteinText2Text": {
        "model.protein_encoder.sequence_compressor_resampler": lambda: {
            "embeds": floats(1, TOKENS, 1280),
            "mask": torch.ones(1, TOKENS),
        },
        **{
            f"model.layers.{index}.adapter": lambda: {
                "query_states": floats(1, TOKENS, 4096),
                "protein_kv_states": floats(1, 9, 4096),
                "structure_kv_states": None,
                "msa_kv_states": None,
                "query_attn_mask": None,
                "protein_batch_mask": torch.ones(1),
            }
            for index in range(3, 32, 4)
        },
    },
    "Gemma4ForConditionalGeneration": {
        "model.audio_tower": lambda: {
            "input_features": floats(1, 200, 128),
            "attention_mask": torch.ones(1, 200, dtype=torch.bool),
        }
    },
    "IdeficsForVisionText2Text": {
        "model": lambda: {
            "input_ids": ints(1, TOKENS),
            "image_encoder_embeddings": floats(1, 1, 9, 768),
            "image_attention_mask": torch.ones(1, TOKENS, 1),
        },
        "model.vision_model": lambda: {"pixel_values": floats(1, 3, 224, 224)},
    },
    "Idefics2ForConditionalGeneration": {
        "model.connector.perceiver_resampler": lambda: {
            "context": floats(1, TOKENS, 4096),
            "attention_mask": torch.ones(1, TOKENS),
        }
    },
    "Inkling2ForConditionalGeneration": {
        "model.vision_tower": lambda: {
            "pixel_values": floats(64, 40, 40, 3),
            "image_grid_thw": torch.tensor([[1, 8, 8]]),
        }
    },
    "InstructBlipForConditionalGeneration": {"qformer": lambda: _qformer()},
    "InstructBlipVideoForConditionalGeneration": {"qformer": lambda: _qformer()},
    "Molmo2ForConditionalGeneration": {
        "model.multi_modal_projector": lambda: {
            "image_features": floats(1, TOKENS, 2304),
            "pooled_patches_idx": ints(2, 4),
        }
    },
    "MuseGlimmerForConditionalGeneration": {"model.vision_tower": lambda: _packed(1176)},
    "MuseSparkForConditionalGeneration": {"model.vision_tower": lambda: _packed(1176)},
}


def _qformer() -> dict[str, Any]:
    return {
        "input_ids": ints(1, TOKENS),
        "query_embeds": floats(1, 32, 768),
        "encoder_hidden_states": floats(1, 9, 1408),
    }


def _packed(features: int) -> dict[str, Any]:
    return {"pixel_values": floats(64, features), "grid_thw": torch.tensor([[1, 8, 8]])}
