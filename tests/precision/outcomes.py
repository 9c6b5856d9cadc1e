"""What a method makes a model say: the logits that a test compares, for each kind of method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import pad

import steer
from steer import memory
from steer.memory import Chooser, Memory, Words
from steer.prompts import encode

Chosen = list[torch.Tensor | None]


@torch.no_grad()
def written(model: Any, processor: Any, method: steer.Method | None, queries: Sequence[steer.Example]) -> torch.Tensor:
    """Logits fp32 (2 N, V) of the first two tokens after a padded batch of prompts, the first given, not chosen."""
    own = steer.create("icl").prompts if method is None else method.prompts
    shown = [steer.prompts.Prompt(one) for one in queries] if method is None else own(queries, model, processor)
    batch = encode(model, processor, shown)
    assert batch.answers is not None
    more = batch.answers[:, :1]
    with steer.attach(model, *([] if method is None else [method])):
        first = model(**batch.inputs, use_cache=True)
        mask = pad(batch.inputs["attention_mask"], (0, 1), value=1)
        second = model(input_ids=more, attention_mask=mask, past_key_values=first.past_key_values)
    return torch.cat([first.logits[:, -1], second.logits[:, -1]]).float()


@torch.no_grad()
def scored(model: Any, processor: Any, method: steer.Method, pictures: Sequence[Any]) -> torch.Tensor:
    """Scores fp32 (N, K) of pictures by the model's own call."""
    bound: Any = method.bind(model, processor)  # type: ignore[attr-defined]
    with steer.attach(model, method):
        return model(**bound.inputs(pictures)).logits_per_image.float()


def asked(model: Any, processor: Any, held: Memory, queries: Sequence[steer.Example]) -> torch.Tensor:
    """Logits fp32 (N, V) of the answers after a memory."""
    return memory.answer_logits(model, held, Words(model, processor).questions(queries)).float()


@contextmanager
def choices(method: Chooser, told: Chosen | None = None) -> Iterator[Chosen]:
    """What a method chooses, choice after choice; with `told`, it chooses that instead."""
    kept: Chosen = []
    choose: Callable[..., Any] = method.choose

    def look(seen: memory.Seen) -> torch.Tensor | None:
        kept.append(choose(seen) if told is None else told[len(kept)])
        return kept[-1]

    method.choose = look  # type: ignore[method-assign]
    try:
        yield kept
    finally:
        del method.choose


def kept_alike(held: Memory, model: Any, processor: Any, shots: Sequence[steer.Example]) -> Memory:
    """The memory of another model that read the same and kept the same tokens."""
    whole = memory.read(model, processor, shots, chunk=len(shots))
    keep = {}
    for layer in held.places:
        kept = held.kept(layer)
        slots, valid = kept.slots.expand(kept.keys.shape[:3] if kept.keys.ndim == 4 else kept.slots.shape), kept.valid
        stays = torch.zeros(*whole.kept(layer).dense(None)[0].shape[:3], dtype=torch.long)
        here = slots.expand(*stays.shape[:2], slots.shape[-1])
        real = torch.ones_like(here) if valid is None else valid.expand_as(here).long()
        keep[layer] = stays.scatter_add(2, here, real) > 0
    return whole.keep(keep)
