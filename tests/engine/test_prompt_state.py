"""The state of a prompt is read from its real rows alone, however the prompt comes by."""

from __future__ import annotations

import pytest
import torch

import steer
from steer import ops, sites
from steer.errors import InterventionError
from steer.intervention import Intervention
from steer.prompt_state import PromptState

from .helpers import tiny_llama, tokens

LENGTHS = (9, 5, 7)


def padded(side: str) -> dict[str, torch.Tensor]:
    """Three prompts of different lengths in one batch."""
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        hidden = slice(None, 9 - length) if side == "left" else slice(length, None)
        ids[row, hidden], mask[row, hidden] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def truth(model, inputs, row: int, pool: str) -> torch.Tensor:
    """What enters layer 2 for one prompt alone, by a plain hook."""
    real = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None]
    kept = []
    handle = model.model.layers[2].register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    with torch.no_grad():
        model(real)
    handle.remove()
    return kept[0][0].mean(0) if pool == "mean" else kept[0][0, -1]


def reader(kept: list[torch.Tensor], pool: str = "mean") -> Intervention:
    return Intervention(sites.resid_in(2), PromptState(kept.append, pool))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_batch_gives_what_each_prompt_gives_alone(pool, side):
    model, inputs, kept = tiny_llama(), padded(side), []
    with steer.attach(model, reader(kept, pool)), torch.no_grad():
        model(**inputs)
    (states,) = kept
    for row in range(3):
        torch.testing.assert_close(states[row], truth(model, inputs, row, pool), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_what_comes_after_the_prompt_is_not_looked_at(pool):
    model, kept = tiny_llama(), []
    ids = tokens(2, 9)
    other = torch.cat([ids[:, :6], tokens(2, 3, seed=5)], dim=1)
    with torch.no_grad():
        for given in (ids, other, ids[:, :6]):
            with steer.attach(model, reader(kept, pool), prompt_length=6):
                model(given)
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)
    torch.testing.assert_close(kept[0], kept[2], rtol=1e-4, atol=1e-5)


def test_it_changes_nothing_and_reads_once_in_a_generation():
    model, kept = tiny_llama(), []
    ids = tokens(2, 6)
    plain = model.generate(ids, max_new_tokens=4, do_sample=False)
    with steer.attach(model, reader(kept)) as session:
        steered = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(plain, steered)
    assert [tuple(one.shape) for one in kept] == [(2, 64)]
    assert session.report().lines[0].rows == 2 * 9


def test_a_prompt_in_pieces_is_refused():
    model, ids = tiny_llama(), tokens(1, 8)
    with pytest.raises(InterventionError, match="pieces"), steer.attach(model, reader([])):
        model.generate(ids, max_new_tokens=2, do_sample=False, prefill_chunk_size=3)


@pytest.mark.parametrize("first", [True, False])
def test_it_sees_what_interventions_before_it_made_and_not_those_after(first):
    model, ids, kept = tiny_llama(), tokens(1, 5), []
    shift = Intervention(sites.resid_in(2), ops.Add(torch.ones(64)))
    items = [shift, reader(kept)] if first else [reader(kept), shift]
    with steer.attach(model, *items), torch.no_grad():
        model(ids)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    torch.testing.assert_close(kept[0][0], truth(model, inputs, 0, "mean") + float(first), rtol=1e-4, atol=1e-5)


def test_bf16_is_read_in_fp32():
    model, kept = tiny_llama().bfloat16(), []
    with steer.attach(model, reader(kept)), torch.no_grad():
        model(tokens(1, 5))
    assert kept[0].dtype == torch.float32
