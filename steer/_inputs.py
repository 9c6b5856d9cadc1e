"""From words and pictures to a model's inputs, through whatever processor it came with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .examples import Example
from .prompts import Prompt, encode, tokenizer_of


def chat_inputs(model: Any, processor: Any, prompt: str, images: Sequence[Any] = ()) -> dict[str, torch.Tensor]:
    """One user turn, ready for `model(**inputs)` or `model.generate(**inputs)`; as it is where there is no template.

    Args:
        model: where the inputs go: its device, and its dtype for what is not whole numbers.
        processor: the model's processor or tokenizer.
        prompt: the user's words.
        images: PIL images, put before the words.

    Raises:
        SteerError: the processor cannot take the pictures or the words.
    """
    chat = getattr(processor, "chat_template", None) is not None
    query = Prompt(Example(prompt, images=tuple(images)))
    return encode(model, processor, [query], template=None if chat else "{images}{question}{answer}").inputs


def random_inputs(model: Any, length: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs for a model that came without a processor: pixels for a vision model, else token ids, (1, length)."""
    generator = torch.Generator().manual_seed(seed)
    if model.main_input_name == "pixel_values":
        side = model.config.image_size
        sides = (side, side) if isinstance(side, int) else tuple(side)
        pixels = torch.randn(1, getattr(model.config, "num_channels", 3), *sides, generator=generator)
        return {"pixel_values": pixels.to(model.device, model.dtype)}
    tokens = model.get_input_embeddings().num_embeddings
    ids = torch.randint(0, tokens, (1, length), generator=generator).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def answer_of(processor: Any, generated: torch.Tensor, inputs: dict[str, torch.Tensor], decoder_only: bool) -> str:
    """The words that `generate` added to one prompt, (1, T) -> str."""
    tokenizer = tokenizer_of(processor)
    start = inputs["input_ids"].shape[1] if decoder_only else 0
    return str(tokenizer.decode(generated[0, start:], skip_special_tokens=True)).strip()
