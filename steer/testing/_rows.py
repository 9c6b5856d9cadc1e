"""Prompts made of one prompt: padded, longer, another, two together."""

from __future__ import annotations

from typing import Any

import torch

from .._bench import Inputs

SLOTS = 3


def padded(model: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    """With three slots of padding: on the left, where a decoder goes on writing, or behind what an encoder reads."""
    text = model.config.get_text_config()
    fill = getattr(text, "pad_token_id", None) or 0
    behind = bool(getattr(model.config, "is_encoder_decoder", False))
    made = dict(inputs)
    for name in _of_tokens(inputs):
        row = inputs[name]
        slots = [torch.full_like(row[:, :1], fill if name == "input_ids" else 0)] * SLOTS
        made[name] = torch.cat([row, *slots] if behind else [*slots, row], dim=1)
    return made


def longer(inputs: Inputs) -> dict[str, torch.Tensor]:
    """With its last three words once more, the other way round."""
    made = dict(inputs)
    for name in _of_tokens(inputs):
        row = inputs[name]
        more = row[:, -SLOTS:].flip(1) if name == "input_ids" else torch.cat([row[:, -1:]] * SLOTS, dim=1)
        made[name] = torch.cat([row, more], dim=1)
    return made


def another(inputs: Inputs) -> dict[str, torch.Tensor]:
    """As long, with another picture, and the words between the first and the last the other way round."""
    made = {name: -one if one.is_floating_point() else one for name, one in inputs.items()}
    ids = inputs["input_ids"]
    made["input_ids"] = torch.cat([ids[:, :1], ids[:, 1:-1].flip(1), ids[:, -1:]], dim=1)
    return made


def together(first: Inputs, second: Inputs) -> dict[str, torch.Tensor]:
    """Both as one batch."""
    return {name: torch.cat([first[name], second[name]]) for name in first}


def _of_tokens(inputs: Inputs) -> list[str]:
    """Names of what has something for each token of the prompt."""
    shape = inputs["input_ids"].shape
    apart = ("pixel", "decoder")
    return [name for name, one in inputs.items() if one.shape[:2] == shape and not name.startswith(apart)]
