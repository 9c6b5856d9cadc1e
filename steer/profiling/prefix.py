"""A prompt read once, all but its last token, so that only that token and the answer are run again and again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .. import fitting, sites
from .._caches import CACHES
from .._teacher_forcing import _takes, inputs_of, one_product, still
from ..intervention import Intervention
from ..memory import Memory, masks
from ..memory.reading import answer_inputs
from ..prompts import Batch
from ..recording import record
from ..session import attach, map_of

# How far apart the two ways to read a prompt may be, relative to the state that they are compared at.
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}
CLOSE_HALF = 0.03


def divided(model: Any, query: Batch) -> tuple[Memory, Batch] | None:
    """What a model read before a prompt's last token, and that token alone.

    Nothing that is done at the last token reaches those before it if attention is causal. That is not taken on trust:
    the prompt is also read in one go, and the states just before the last token must be the same.

    Args:
        model: any mapped model that writes text.
        query: one prompt with its answer.

    Returns:
        None where the model keeps no cache, or reads a prompt in both directions.
    """
    if len(query) > 1 or query.inputs["input_ids"].shape[1] < 2 or not _keeps_a_cache(model):
        return None
    before, last = _cut(query, slice(None, -1)), _cut(query, slice(-1, None), pictures=False)
    site = sites.resid_out(map_of(model).tower().layers[-1].index)
    with still(model), torch.no_grad():
        with record(model, site) as apart:
            memory = Memory.empty(model).read(model, before.inputs)
        inputs, length = inputs_of(model, replace(query, answers=None))
        with record(model, site, prompt_length=length, stop=True) as whole:
            model(**inputs)
    first, second = (acts[site.name, site.layers].float() for acts in (apart, whole))
    first, second = first[:, -1], second[:, -2]
    close = CLOSE.get(next(model.parameters()).dtype, CLOSE_HALF)
    return (memory, last) if (first - second).norm() <= close * second.norm() else None


def _keeps_a_cache(model: Any) -> bool:
    encodes = model.config.is_encoder_decoder or "text_encoder" in map_of(model).towers
    return not encodes and any(_takes(model, name) for name in CACHES)


def _cut(query: Batch, part: slice, pictures: bool = True) -> Batch:
    """Some columns of what goes with tokens; pictures whole or not at all."""
    shape = query.inputs["input_ids"].shape
    of_tokens = {name: value[:, part] for name, value in query.inputs.items() if value.shape[:2] == shape}
    whole = {name: value for name, value in query.inputs.items() if name not in of_tokens} if pictures else {}
    return replace(query, inputs={**of_tokens, **whole})


def score_after(model: Any, memory: Memory, batch: Batch, *items: Intervention) -> fitting.Scores:
    """`fitting.score` of one batch of what comes after a memory."""
    assert batch.answers is not None
    inner = getattr(model, "model", model)
    deltas = getattr(inner, "rope_deltas", None)
    length = memory.length + batch.inputs["input_ids"].shape[1]
    with (
        torch.no_grad(),
        still(model),
        masks(model),
        one_product(model),
        attach(model, *items, measure="none", prompt_length=length),
    ):
        inputs, _ = answer_inputs(model, memory, batch)
        logits = model(**inputs, past_key_values=memory.cache(len(batch), model)).logits
    if hasattr(inner, "rope_deltas"):
        inner.rope_deltas = deltas
    rows = logits[:, -batch.answers.shape[1] :].float()
    return fitting.Scores(*(part.cpu() for part in fitting._score(rows, batch.answers.to(rows.device))))
