"""Every method in bf16, fp16 and int8: as good as in fp32, to what the precision can hold, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steer

from .outcomes import asked
from .precisions import FINEST, PRECISIONS, TOLERANCE, bits
from .recipes import BUILDING, RECIPES, WRITING
from .subjects import TWICE, measured, plain, subject, subject_of

CASES = [(name, precision) for precision in PRECISIONS for name in RECIPES]
UNSEEN = ("icl", "savs", "zero_shot")
"""Methods that do nothing while they are attached: they are a prompt, a vote and hand-written words."""


def test_every_method_has_a_recipe():
    assert set(RECIPES) == set(steer.methods())


@pytest.mark.parametrize("name, precision", CASES)
def test_a_method_is_what_it_is_in_fp32(name, precision, tmp_path):
    one = subject_of(name, precision)
    (before, _), weights = plain(one), bits(one.here.model)
    method = RECIPES[name](one.here.model, one.here.processor, one.examples)
    check_untouched(one.here.model, weights)
    assert all(value.dtype == torch.float32 for value in method.tensors.values() if value.is_floating_point())

    # As near to the twin as the model alone is, to a factor of 2, where it is read once.
    found, tolerance = measured(one, method), TOLERANCE[precision]
    assert found.finite
    assert found.ruled_out is (name in TWICE)
    assert max(found.alone, found.far) <= tolerance
    assert name in TWICE or found.far <= max(2 * found.alone, FINEST)
    assert name in UNSEEN or found.effect > 2 * tolerance
    check_untouched(one.here.model, weights)
    assert torch.equal(one.says(None), before)

    if name not in BUILDING:
        method.save_pretrained(tmp_path)
        assert torch.equal(one.says(steer.load(tmp_path, one.here.model)), found.got)


def check_untouched(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    now = bits(model)
    assert now.keys() == weights.keys()
    assert all(torch.equal(now[name], value) for name, value in weights.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_votes_are_those_of_fp32(precision):
    one = subject("tiny-vlm", precision)
    method: Any = WRITING["savs"](one.here.model, one.here.processor, one.examples)
    got, truth = (method.classify(m, one.here.processor, one.queries) for m in (one.here.model, one.here.twin))
    assert got[0] == truth[0]
    assert int((got[1] - truth[1]).abs().sum()) <= 2  # one head of 12 may change its mind


@pytest.mark.parametrize("name", BUILDING)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_saved_memory_answers_the_same(name, precision, tmp_path):
    one = subject("tiny-vlm", precision)
    model, processor = one.here.model, one.here.processor
    method: Any = RECIPES[name](model, processor, one.examples)
    memory = method.build(model, processor, one.examples, certify=False, progress=False)
    memory.save(tmp_path, processor)
    loaded = steer.memory.Memory.load(tmp_path, model, processor=processor)
    got = asked(model, processor, loaded, one.queries)
    assert torch.equal(got, asked(model, processor, memory, one.queries))
    loaded.unbind()
    memory.unbind()
    assert torch.equal(one.says(None), plain(one)[0])
