"""From words and pictures to a model's inputs, through whatever processor it came with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .errors import SteerError


def chat_inputs(model: Any, processor: Any, prompt: str, images: Sequence[Any] = ()) -> dict[str, torch.Tensor]:
    """One user turn, ready for `model(**inputs)` or `model.generate(**inputs)`.

    Args:
        model: where the inputs go: its device, and its dtype for what is not whole numbers.
        processor: the model's processor or tokenizer.
        prompt: the user's words.
        images: PIL images, put before the words.

    Raises:
        SteerError: the processor cannot take the pictures or the words.
    """
    if processor is None:
        raise SteerError(
            f"{type(model).__name__} came without a processor or tokenizer, so words cannot be given to it"
        )
    sees = getattr(processor, "image_processor", None) is not None
    if images and not sees:
        raise SteerError(f"{type(model).__name__} came without an image processor; leave the pictures out")
    try:
        encoded = _encode(processor, prompt, list(images), sees)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SteerError(f"{type(processor).__name__} cannot make inputs of this: {error}") from error
    device, dtype = model.device, model.dtype
    tensors = {key: value for key, value in encoded.items() if isinstance(value, torch.Tensor)}
    return {key: value.to(device, dtype if value.is_floating_point() else None) for key, value in tensors.items()}


def random_inputs(model: Any, length: int = 8) -> dict[str, torch.Tensor]:
    """Inputs for a model that came without a processor: pixels for a vision model, else token ids, (1, length)."""
    generator = torch.Generator().manual_seed(0)
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
    tokenizer = getattr(processor, "tokenizer", processor)
    start = inputs["input_ids"].shape[1] if decoder_only else 0
    return str(tokenizer.decode(generated[0, start:], skip_special_tokens=True)).strip()


def _encode(processor: Any, prompt: str, images: list[Any], sees: bool) -> Any:
    template = getattr(processor, "chat_template", None)
    if template is None:
        if not sees:
            return processor([prompt], return_tensors="pt")
        # Without a template the pictures' places are written by hand, where the processor has a word for them.
        placeholder = getattr(processor, "image_token", None) or ""
        words = [placeholder * len(images) + prompt]
        return processor(text=words, images=images or None, return_tensors="pt")
    content: Any = prompt
    if sees:
        content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
