"""A memory answers as the model does with the whole context before it."""

from __future__ import annotations

import pytest
import torch

from steer.memory import Memory
from tests.engine.families import FAMILIES, Family

from .answers import CLOSE, GREEDY

DECODERS = [name for name in FAMILIES if name not in ("florence2", "blip")]


def joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Prompts one after the other in one row, as a processor would have made them."""
    made = {}
    for name in {n for part in parts for n in part}:
        tensors = [part[name] for part in parts if name in part]
        shape = parts[-1]["input_ids"].shape
        axis = 1 if parts[-1].get(name, tensors[-1]).shape[:2] == shape else 0
        made[name] = torch.cat(tensors, dim=axis)
    return made


def parts(family: Family, name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A context with a picture, and a question with one of its own where the family can take a second."""
    context, question = family.prompt(7, seed=1), family.prompt(4, seed=2)
    if name == "mllama":
        question = {n: question[n] for n in ("input_ids", "attention_mask")}
        question = {n: t[:, 1:] for n, t in question.items()}
    return context, question


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_an_unpruned_memory_answers_as_the_whole_context(name, implementation) -> None:
    family = FAMILIES[name]
    model = family.model(implementation)
    context, question = parts(family, name)
    whole = joined([context, question])
    if name == "mllama":
        whole["cross_attention_mask"] = torch.ones(*whole["input_ids"].shape, 1, 1, dtype=torch.long)
    truth = model.generate(**whole, **GREEDY)
    kept = Memory.empty(model).read(model, context).bind(model)
    assert kept.length == context["input_ids"].shape[1]
    if name == "mllama":
        question["cross_attention_mask"] = torch.ones(*question["input_ids"].shape, 1, 1, dtype=torch.long)
    alone = model.generate(**question, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(torch.stack(alone.logits), torch.stack(truth.logits), **CLOSE)
    full = model.generate(**whole, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(torch.stack(full.logits), torch.stack(truth.logits), **CLOSE)
    assert torch.equal(full.sequences, truth.sequences)
    plain = model(**question, past_key_values=kept).logits[:, -1]
    torch.testing.assert_close(plain, truth.logits[0], **CLOSE)
