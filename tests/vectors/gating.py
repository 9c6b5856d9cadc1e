"""Shifts to be gated, and steering written out by hand for one prompt at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import steer
from tests.engine.helpers import randn

from .subjects import Inputs, Subject, passing

Shift = tuple[int, torch.Tensor]
"""A layer and the vector to add after it, at every row from the prompt's last on."""


def vector(one: Subject, layer: int, seed: int = 0, size: float = 1.0) -> steer.Method:
    """A method that adds a random vector after a layer, where new tokens are written from."""
    method = steer.create("function_vector", where="answer")
    scale = size * float(passing(one.layers[layer], one.model, inputs_of(one, 0)).norm(dim=-1).mean())
    made = torch.nn.functional.normalize(randn(one.model.get_input_embeddings().weight.shape[1], seed=seed), dim=0)
    method.tensors = {"vector": made * scale, "layer": torch.tensor(float(layer))}
    return method


def inputs_of(one: Subject, index: int) -> Inputs:
    """One example alone, as a prompt without demonstrations."""
    return one.by_hand(steer.prompts.Prompt(one.examples[index]))


def shift_of(method: steer.Method) -> Shift:
    return int(method.tensors["layer"]), method.tensors["vector"]


def state(one: Subject, inputs: Inputs, layer: int, pool: str) -> torch.Tensor:
    """What enters a layer, pooled over the prompt, in fp64: (D,)."""
    rows = passing(one.layers[layer], one.model, inputs, before=True)[0].double()
    return rows.mean(0) if pool == "mean" else rows[-1]


def steered(one: Subject, inputs: Inputs, shifts: list[Shift], start: int) -> torch.Tensor:
    """Logits (T, V) of one row under plain hooks that add each vector from row `start` on."""

    def add(v: torch.Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            x = (output[0] if isinstance(output, tuple) else output).clone()
            x[:, start:] += v.to(x.dtype)
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return hook

    handles = [one.layers[layer].register_forward_hook(add(v)) for layer, v in shifts]
    try:
        with torch.no_grad():
            return one.model(**inputs).logits[0].detach()
    finally:
        for handle in handles:
            handle.remove()


def greedy(one: Subject, inputs: Inputs, shifts: list[Shift], count: int) -> list[int]:
    """What is written after one prompt, by whole forwards without a cache; never the token that ends."""
    length, inputs = inputs["input_ids"].shape[1], dict(inputs)
    written: list[int] = []
    for _ in range(count):
        logits = steered(one, inputs, shifts, length - 1)[-1]
        if one.model.generation_config.eos_token_id is not None:
            logits[one.model.generation_config.eos_token_id] = -torch.inf
        token = int(logits.argmax())
        written.append(token)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        if "attention_mask" in inputs:
            inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
    return written


def written(one: Subject, batch: steer.prompts.Batch, count: int, **options: Any) -> list[list[int]]:
    """What `generate` writes after every prompt of a batch."""
    out = one.model.generate(
        **batch.inputs,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    return out[:, batch.inputs["input_ids"].shape[1] :].tolist()
