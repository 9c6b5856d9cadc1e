"""What answers are worth with one head's result replaced, by plain torch hooks, one head and one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from steer.prompts import Prompt


def replaced(row: int, head: int, value: Tensor) -> Callable[..., Any]:
    """A hook that puts a value (d_v,) in the place of a head's result at a row."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0].clone()
        x[:, row, head * len(value) : (head + 1) * len(value)] = value.to(x)
        return (x, *args[1:])

    return hook


def log_prob(model: Any, inputs: dict[str, Tensor], answer: list[int], hook: Any = None, at: Any = None) -> float:
    """Of an answer whose last token is not among the inputs, with a hook before a module."""
    handle = at.register_forward_pre_hook(hook) if hook is not None else None
    try:
        with torch.no_grad():
            logits = model(**inputs).logits[0, -len(answer) :].double().log_softmax(-1)
    finally:
        if handle is not None:
            handle.remove()
    return sum(float(row[token]) for row, token in zip(logits, answer, strict=True))


def answered(one: Any, prompt: Prompt) -> tuple[dict[str, Tensor], list[int], int]:
    """Inputs up to the answer's last token but one, the answer's tokens, and the row of the prompt's last token."""
    bare = one.by_hand(prompt)
    whole = one.by_hand(Prompt(prompt.query, prompt.shots, answered=True))
    length, total = bare["input_ids"].shape[1], whole["input_ids"].shape[1]
    answer = whole["input_ids"][0, length:].tolist()
    names = ("input_ids", "attention_mask", "mm_token_type_ids")
    inputs = {name: t[:, : total - 1] if name in names else t for name, t in whole.items()}
    return inputs, answer, length - 1


def result_at(module: nn.Module, model: Any, inputs: dict[str, Tensor], row: int) -> Tensor:
    """What enters an output projection at a row, (H * d_v,)."""
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda m, args: kept.append(args[0][0, row].clone()))
    with handle, torch.no_grad():
        model(**inputs)
    return kept[0]
