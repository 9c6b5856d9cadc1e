"""Build the untrained tiny-scenes: a CLIP tower, a Llama text tower with grouped-query attention, LLaVA's projector."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from steer import zoo
from steer.zoo._scenes import SIDE

PATCH = 16  # pixels: 4 x 4 = 16 tokens for each picture
TOKENS_PER_IMAGE = (SIDE // PATCH) ** 2
TEMPLATE = (zoo.folder("tiny-vlm") / "chat_template.jinja").read_text()  # "<image>question? answer<end>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one id for each lower-case word, "?" is a word of its own."""
    words = zoo.scene_words.vocabulary()
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """Pictures to [n, 3, SIDE, SIDE] in -1..1; every "<image>" in the text becomes TOKENS_PER_IMAGE tokens."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """About 2.7 M parameters, random weights."""
    vision = CLIPVisionConfig(
        image_size=SIDE, patch_size=PATCH, hidden_size=160, intermediate_size=640, num_hidden_layers=4,
        num_attention_heads=5, projection_dim=160, hidden_act="gelu",
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default", image_seq_length=TOKENS_PER_IMAGE,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    for layer in model.model.language_model.layers[:2]:
        look_for_likes(layer.self_attn)
    return model


def look_for_likes(attention: nn.Module, std: float = 0.05) -> None:
    """Start a text layer's queries as its keys, so that a word attends to what resembles it before any training.

    "Is there a cat?" needs just that, and from plain random weights it is found late (compare "mimetic
    initialisation", Trockman and Kolter 2023).
    """
    with torch.no_grad():
        key = attention.k_proj.weight.normal_(0, std)
        groups = attention.q_proj.out_features // key.shape[0]
        head = attention.head_dim
        attention.q_proj.weight.copy_(key.unflatten(0, (-1, head)).repeat_interleave(groups, 0).flatten(0, 1))
