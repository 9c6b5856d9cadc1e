"""Build the untrained tiny-clip: a CLIP of two small towers, its word-level tokenizer and its processor."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE, PATCH = 48, 12  # pixels: 4 x 4 = 16 patches
CONTEXT = 40  # tokens a prompt may have


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """One id for each lower-case word and sign; <eos> has the largest, as in CLIP, and <pad> is another."""
    vocabulary = ["<pad>", "<sos>", "<unk>", *words, "<eos>"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<sos>", 1), ("<eos>", len(vocabulary) - 1)]
    core.post_processor = processors.TemplateProcessing(single="<sos> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<sos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> CLIPProcessor:
    """Pictures to [n, 3, SIDE, SIDE] in -1..1, texts to token ids."""
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)


def build_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """About 2.3 M parameters, random weights."""
    ids = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shared = {"hidden_act": "quick_gelu", "projection_dim": 128}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": CONTEXT, **ids, **shared,
    }  # fmt: skip
    vision = {
        "image_size": SIDE, "patch_size": PATCH, "hidden_size": 160, "intermediate_size": 640,
        "num_hidden_layers": 4, "num_attention_heads": 5, **shared,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
