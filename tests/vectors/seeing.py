"""Processors for the engine's tiny models of every family, so that a method can be fitted on each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import steer
from tests.engine.families import FAMILIES, IMAGE
from tests.engine.helpers import tiny_llama

from .subjects import Inputs, word_tokenizer

SHAPES = {
    "llava": (3, 16, 16),
    "qwen2_5_vl": (16, 96),
    "qwen3_5": (16, 96),
    "mllama": (3, 16, 16),
    "florence2": (3, 32, 32),
    "blip": (3, 16, 16),
}
# Models that take one picture for each row: of a prompt with demonstrations they see the query's.
ONE_PICTURE = ("florence2", "blip")


@dataclass
class FamilyProcessor:
    """Words to numbers, `<image>` to as many tokens as the family has for a picture, and padding on the left."""

    family: str
    image_processor: Any = True
    image_token: str | None = "<image>"
    chat_template: None = None

    def __post_init__(self) -> None:
        self.tokenizer = word_tokenizer(padded=True)

    def __call__(
        self, text, images=None, padding=False, padding_side="right", return_tensors=None, add_special_tokens=True
    ) -> Inputs:
        rows = [self._expanded(self.tokenizer(words)["input_ids"]) for words in text]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        found = {"input_ids": ids, "attention_mask": mask}
        return found | self._pictures(ids, images or [[] for _ in rows])

    def _expanded(self, ids: list[int]) -> list[int]:
        if self.family in ONE_PICTURE:
            return [*FAMILIES[self.family].prefix, *(one for one in ids if one != IMAGE)]
        own = [one for one in FAMILIES[self.family].prefix if self.family != "mllama" or one == IMAGE]
        return [new for old in ids for new in (own if old == IMAGE else [old])]

    def _pictures(self, ids: torch.Tensor, images: Sequence[Sequence[torch.Tensor]]) -> Inputs:
        if self.family in ONE_PICTURE:
            return {"pixel_values": torch.stack([row[-1] for row in images])}
        every = [one for row in images for one in row]
        if self.family == "llava":
            return {"pixel_values": torch.stack(every)}
        if self.family == "mllama":
            return _tiles(ids, images)
        grids = torch.tensor([[1, 4, 4]] * len(every))
        return {
            "pixel_values": torch.cat(every),
            "image_grid_thw": grids,
            "mm_token_type_ids": (ids == IMAGE).long(),
        }


def _tiles(ids: torch.Tensor, images: Sequence[Sequence[torch.Tensor]]) -> Inputs:
    """As mllama's: pictures (B, n, 1, 3, 16, 16) with empty places, and which words see which, (B, T, n, 1)."""
    most = max(map(len, images))
    pixels = torch.zeros(len(images), most, 1, 3, 16, 16)
    there = torch.zeros(len(images), most, dtype=torch.long)
    for b, row in enumerate(images):
        for i, picture in enumerate(row):
            pixels[b, i, 0], there[b, i] = picture, 1
    number = (ids == IMAGE).cumsum(1).unsqueeze(-1) - 1
    seen = (number == torch.arange(most)).long().unsqueeze(-1)
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": there,
        "aspect_ratio_mask": there.unsqueeze(-1),
        "cross_attention_mask": seen,
    }


@cache
def seeing(name: str) -> tuple[Any, Any, tuple[steer.Example, ...]]:
    """A family's model in eval mode (or `llama`, which only reads), its processor, and 8 answered examples."""
    generator = torch.Generator().manual_seed(5)

    def some(count: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(6, 90, (count,), generator=generator))

    def picture() -> tuple[torch.Tensor, ...]:
        return (torch.randn(*SHAPES[name], generator=generator),) if name in SHAPES else ()

    examples = tuple(steer.Example(some(1 + i % 3), some(1 + i % 2), picture()) for i in range(8))
    if name == "llama":
        return tiny_llama(pad_token_id=None), word_tokenizer(), examples
    return FAMILIES[name].model(), FamilyProcessor(name), examples


NAMES = (*SHAPES, "llama")
