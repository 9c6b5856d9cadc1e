"""Tiny two-stream models of each kind with random weights, and a processor for them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

WORDS = [
    "x",
    "a",
    "an",
    "the",
    "photo",
    "of",
    "picture",
    "drawing",
    "cat",
    "dog",
    "airplane",
    "fire",
    "extinguisher",
    "red",
    "apple",
    "big",
    "small",
    ".",
    "good",
    "bad",
]
SPECIAL = ["<pad>", "<unk>", "<s>"]
SLOTS, SIZE, PATCH = 24, 16, 4
VOCAB = len(SPECIAL) + len(WORDS) + 1
EOS = VOCAB - 1
CLASSES = ["cat", "dog", "fire extinguisher", "red apple"]


def tokenizer(first: str | None = "<s>", mask: bool = True) -> Any:
    """A word-level tokenizer whose end-of-text has the largest id; `first` None adds nothing before the words."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS, "</s>"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    single = f"{first} $A </s>" if first else "$A </s>"
    special = [(name, vocabulary[name]) for name in ("<s>", "</s>")]
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        do_lower_case=True,
        model_max_length=SLOTS,
    )
    made.model_input_names = ["input_ids", "attention_mask"] if mask else ["input_ids"]
    return made


def pixels(images: list[Any], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
    """Pictures as (B, 3, 16, 16), scaled to about one."""
    import numpy as np

    arrays = [np.asarray(one.convert("RGB").resize((SIZE, SIZE)), dtype=np.float32) / 127.5 - 1 for one in images]
    return {"pixel_values": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()}


def processor(**options: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer(**options), image_processor=pixels)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Random pictures of one colour each with a random square on it."""
    import numpy as np

    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        array = np.broadcast_to(rng.integers(0, 255, 3), (SIZE, SIZE, 3)).astype(np.uint8).copy()
        y, x = rng.integers(0, SIZE - 4, 2)
        array[y : y + 6, x : x + 6] = rng.integers(0, 255, 3)
        made.append(Image.fromarray(array))
    return made


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": SLOTS,
    "bos_token_id": 2,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": PATCH,
}


def clip(activation: str = "quick_gelu") -> nn.Module:
    config = hf.CLIPConfig(
        text_config={**TEXT, "hidden_act": activation, "projection_dim": 20},
        vision_config={**VISION, "hidden_act": activation, "projection_dim": 20},
        projection_dim=20,
    )
    return hf.CLIPModel(config)


def siglip() -> nn.Module:
    return hf.SiglipModel(hf.SiglipConfig(text_config={**TEXT, "projection_size": 24}, vision_config=VISION))


def random_weights(model: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Weights large enough that every part of a model matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if one.ndim > 1 or "class_embedding" in name:
                one.copy_(std * torch.randn(one.shape, generator=generator))
    return model.eval().requires_grad_(False)


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "clip": (clip, {}),
    "siglip": (siglip, {"first": None, "mask": False}),
}


def build(name: str) -> tuple[nn.Module, Any]:
    """A model and its processor."""
    torch.manual_seed(0)
    make, options = MODELS[name]
    return random_weights(make()), processor(**options)
