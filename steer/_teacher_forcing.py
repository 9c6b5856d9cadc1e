"""A forward over prompts and their answers together, so that every answer token is scored where it is predicted."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .prompts import IGNORED, Batch


def inputs_of(model: Any, batch: Batch) -> tuple[dict[str, torch.Tensor], int]:
    """Inputs of one forward that ends where the answer's last token is predicted, and the prompt's length in it."""
    inputs = dict(batch.inputs)
    if model.config.is_encoder_decoder:
        return _decoder_inputs(model, batch, inputs)
    length = inputs["input_ids"].shape[1]
    if batch.answers is not None:
        _append(inputs, *_read(batch.answers))
    mask = inputs.get("attention_mask")
    # Left padding moves absolute positions; models with positions in several dimensions work them out themselves.
    if mask is not None and not mask.all() and _takes(model, "position_ids") and not _finds_positions(model):
        inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp_min(0)
    return inputs, length


def _read(answers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens (B, A - 1) of answers (B, A) that something is still written after, and where a row has them.

    A short answer's last token is not among them, however long the answers beside it are.
    """
    return answers[:, :-1].clamp_min(0), answers[:, 1:] != IGNORED


def _append(inputs: dict[str, torch.Tensor], tokens: torch.Tensor, real: torch.Tensor) -> None:
    """Put tokens (B, A) after the prompts; whatever else goes with each token goes on as it was at the prompt's end."""
    batch, length = inputs["input_ids"].shape
    for name, value in inputs.items():
        if value.shape[:2] != (batch, length):
            continue
        if name == "input_ids":
            more = tokens
        elif name == "attention_mask":
            more = real
        else:
            more = value[:, -1:].expand(batch, tokens.shape[1], *value.shape[2:])
        inputs[name] = torch.cat([value, more.to(value.dtype)], dim=1)


def _decoder_inputs(model: Any, batch: Batch, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    configs = (model.generation_config, model.config, model.config.get_text_config(decoder=True))
    stated = (getattr(config, "decoder_start_token_id", None) for config in configs)
    start = next((token for token in stated if token is not None), 0)
    first = torch.full((len(batch), 1), start, device=inputs["input_ids"].device)
    tokens = real = first[:, :0]
    if batch.answers is not None:
        whole = batch.answers.clamp_min(0), batch.answers != IGNORED
        tokens, real = whole if batch.answered else _read(batch.answers)
    inputs["decoder_input_ids"] = torch.cat([first, tokens], dim=1)
    inputs["decoder_attention_mask"] = torch.cat([torch.ones_like(first), real.long()], dim=1)
    return inputs, inputs["decoder_input_ids"].shape[1] if batch.answered else 1


def keep_logits(model: Any, rows: int) -> dict[str, int]:
    """A large vocabulary's scores are made only for the rows that are read, where the model can."""
    return {"logits_to_keep": rows} if _takes(model, "logits_to_keep") and not model.config.is_encoder_decoder else {}


@contextmanager
def one_product(model: Any) -> Iterator[None]:
    """The scores of a few rows of each prompt as one matrix product.

    Those rows are a slice, not contiguous, and torch then reads the whole vocabulary's weights once for every prompt:
    measured on a model of 135 M parameters, half of a training step.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda module, args: tuple(x.contiguous() for x in args))
    try:
        yield
    finally:
        handle.remove()


def no_cache(model: Any) -> dict[str, bool]:
    """Keys and values are not kept, where the model can be told so."""
    return {"use_cache": False} if _takes(model, "use_cache") else {}


def _takes(model: Any, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


def _finds_positions(model: Any) -> bool:
    return hasattr(getattr(model, "model", model), "get_rope_index")


@contextmanager
def still(model: Any) -> Iterator[None]:
    """No dropout; every module's mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
