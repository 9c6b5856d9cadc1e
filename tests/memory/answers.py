"""The truth about answers after a memory: plain `generate` on the whole context, dropped keys hidden by a mask."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import steer
from steer.memory import Memory
from tests.engine.helpers import tiny_llama, tokens

from .dense import hidden

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": 5,
    "eos_token_id": None,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def random_selection(memory: Memory, share: float = 0.5, seed: int = 5) -> dict[int, torch.Tensor]:
    """Another choice for every row, head and layer, with another number of keys; bool (B, H_kv, S) over all slots."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer in memory.places:
        kept = memory.kept(layer)
        keep = torch.rand(kept.batch, kept.heads, memory.length, generator=generator) < share
        keep = keep & memory.mask[:, None]
        last = torch.where(memory.mask, torch.arange(memory.length), 0).amax(-1)
        keep[torch.arange(kept.batch), :, last] = True
        made[layer] = keep
    return made


def pruned(memory: Memory, keep: dict[int, torch.Tensor]) -> Memory:
    """The memory with a selection over slots, whatever columns its layers have."""
    chosen = {}
    for layer, want in keep.items():
        kept = memory.kept(layer)
        chosen[layer] = want.gather(2, kept.slots.expand(kept.batch, kept.heads, -1))
    return memory.keep(chosen)


def heads_of(model: nn.Module, layer: int) -> int:
    return steer.inspect(model).tower().layers[layer].attention.num_heads


class Whole:
    """A model with the whole context in transformers' own cache, and dropped keys hidden while questions are read."""

    def __init__(self, model: nn.Module, context: dict[str, torch.Tensor], keep: dict[int, torch.Tensor]) -> None:
        self.model, self.keep = model, keep
        self.context = dict(context)
        mask = context.get("attention_mask")
        self.mask = torch.ones_like(context["input_ids"]) if mask is None else mask
        places = (self.mask.cumsum(-1) - 1).clamp_min(0)
        self.cache = model(**self.context, position_ids=places, use_cache=True).past_key_values

    def _goes_on(self, question: dict[str, torch.Tensor]) -> tuple[dict[str, Any], dict[int, torch.Tensor]]:
        ids = question["input_ids"]
        repeats = ids.shape[0] // self.mask.shape[0]
        cache = copy.deepcopy(self.cache)
        if repeats > 1:
            cache.batch_repeat_interleave(repeats)
        own = question.get("attention_mask", torch.ones_like(ids))
        front, mask = (t.repeat_interleave(repeats, 0) for t in (self.context["input_ids"], self.mask))
        given = {"input_ids": torch.cat([front, ids], 1), "attention_mask": torch.cat([mask, own], 1)}
        drop = {layer: ~keep.repeat_interleave(repeats, 0) for layer, keep in self.keep.items()}
        return {**question, **given, "past_key_values": cache}, drop

    def generate(self, question: dict[str, torch.Tensor], **options: Any) -> Any:
        """Sequences are without the context."""
        given, drop = self._goes_on(question)
        copies = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
        if copies > 1:
            given["past_key_values"].batch_repeat_interleave(copies)
            drop = {layer: d.repeat_interleave(copies, 0) for layer, d in drop.items()}
        with hidden(self.model, drop, heads_of(self.model, min(drop)) if drop else 1):
            out = self.model.generate(**given, **{**GREEDY, **options})
        out["sequences"] = out["sequences"][:, self.mask.shape[1] :]
        return out

    def forward(self, question: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of the question's rows (B, T, V)."""
        given, drop = self._goes_on(question)
        length = question["input_ids"].shape[1]
        places = (given["attention_mask"].cumsum(-1) - 1).clamp_min(0)[:, -length:]
        given["input_ids"] = question["input_ids"]
        with hidden(self.model, drop, heads_of(self.model, min(drop)) if drop else 1):
            return self.model(**given, position_ids=places).logits


def logits(out: Any) -> torch.Tensor:
    """(B, T, V)."""
    return torch.stack(out.logits, 1)


def llama_with(
    rows: int = 1, length: int = 14, padding: tuple[int, ...] = (), share: float | None = 0.5, **changes: Any
) -> tuple[nn.Module, Memory, Whole]:
    """A tiny Llama, a memory of which a random selection is left, and the truth about it.

    Args:
        rows, length: of the context.
        padding: how many slots on the left of each row are padding.
        share: of keys that are kept; None for all.
        changes: to the model's configuration.
    """
    model = tiny_llama(**changes)
    context = {"input_ids": tokens(rows, length, seed=3)}
    if padding:
        context["attention_mask"] = (torch.arange(length) >= torch.tensor(padding)[:, None]).long()
        context["input_ids"] = context["input_ids"] * context["attention_mask"]
    memory = Memory.empty(model).read(model, context)
    keep = {} if share is None else random_selection(memory, share)
    return model, pruned(memory, keep).bind(model), Whole(model, context, keep)


def question(rows: int = 1, length: int = 4, padding: tuple[int, ...] = (), seed: int = 7) -> dict[str, torch.Tensor]:
    """Random tokens, some of them padding on the left."""
    ids = tokens(rows, length, seed=seed)
    mask = torch.ones_like(ids)
    if padding:
        mask = (torch.arange(length) >= torch.tensor(padding)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
