"""Tiny two-stream models of each kind with random weights, and a processor for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from .families import FAMILIES, OTHERS, PATCH, SIZE, SLOTS, SPECIAL, WORDS, random_weights

CLASSES = ["cat", "dog", "fire extinguisher", "red apple"]
GRIDS = ((16, 16), (8, 16), (16, 8), (12, 12))
"""Sizes of pictures, (height, width): in patches of 4 no two grids are alike."""


def tokenizer(first: str | None = "<s>", mask: bool = True, types: bool = False, side: str = "right") -> Any:
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
        padding_side=side,
    )
    made.model_input_names = ["input_ids", *["token_type_ids"] * types, *["attention_mask"] * mask]
    return made


def pixels(images: list[Any], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
    """Pictures as (B, 3, 16, 16), scaled to about one."""
    arrays = [_scaled(one, SIZE, SIZE) for one in images]
    return {"pixel_values": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()}


def patches(images: list[Any], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
    """Pictures as lists of patches, (B, 16, 48), with the grid of each and zeros behind the last patch."""
    most = (SIZE // PATCH) ** 2
    values, seen = torch.zeros(len(images), most, 3 * PATCH**2), torch.zeros(len(images), most, dtype=torch.long)
    grids = [tuple(min(side, SIZE) // PATCH for side in (one.height, one.width)) for one in images]
    for row, (one, (high, wide)) in enumerate(zip(images, grids, strict=True)):
        array = torch.from_numpy(_scaled(one, high * PATCH, wide * PATCH))
        tiles = array.reshape(high, PATCH, wide, PATCH, 3).transpose(1, 2)
        values[row, : high * wide] = tiles.reshape(high * wide, -1)
        seen[row, : high * wide] = 1
    return {"pixel_values": values, "pixel_attention_mask": seen, "spatial_shapes": torch.tensor(grids)}


def _scaled(image: Any, height: int, width: int) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((width, height)), dtype=np.float32) / 127.5 - 1


def processor(packed: bool = False, **options: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer(**options), image_processor=patches if packed else pixels)


def pictures(count: int, seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((SIZE, SIZE),)) -> list[Image.Image]:
    """Random pictures of one colour each with a random square on it; `sizes` (height, width) in turn."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        array = np.broadcast_to(rng.integers(0, 255, 3), (SIZE, SIZE, 3)).astype(np.uint8).copy()
        y, x = rng.integers(0, SIZE - 4, 2)
        array[y : y + 6, x : x + 6] = rng.integers(0, 255, 3)
        height, width = sizes[index % len(sizes)]
        made.append(Image.fromarray(array[:height, :width]))
    return made


def build(name: str, **changes: Any) -> tuple[nn.Module, Any]:
    """A model and its processor; `changes` are options of `tokenizer`."""
    torch.manual_seed(0)
    if name in OTHERS:
        return random_weights(OTHERS[name]()), processor(**changes)
    family = FAMILIES[name]
    return random_weights(family.make()), processor(family.packed, **{**family.options, **changes})
