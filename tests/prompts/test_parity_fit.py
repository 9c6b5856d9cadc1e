"""Every preset's `fit` against the reference: terms of the loss, gradients, and the tensors after one step."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from tests.prompts import parity, stepping
from tests.prompts.test_parity_logits import close
from tests.prompts.truth import Truth

EXACT = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", parity.LEARNING)
def test_one_step(name, dtype, monkeypatch):
    one, bar = parity.subject(dtype), EXACT[dtype]
    made = stepping.fitted(monkeypatch, name, one, dtype)
    truth = Truth(name, made.method, one)
    before = parity.learned(made.method, made.before)
    wanted = {key: float(value) for key, value in truth.terms(before).items()}
    assert made.terms == pytest.approx(wanted, rel=bar)
    (after,) = stepping.steps(truth, before, [stepping.RATE])
    gradients = stepping.gradients(truth, before)
    assert len(gradients) == len(made.gradients) > 0
    for key, gradient in made.gradients.items():
        theirs = parity.renamed(made.method, key)
        assert gradient.norm() > 0
        close(gradient, gradients[theirs], bar)
        close(made.method.tensors[key] - made.before[key], after[theirs] - before[theirs], 10 * bar)
        close(made.method.tensors[key], after[theirs], bar)


@pytest.mark.parametrize("name", parity.LEARNING)
def test_one_step_of_a_model_in_bf16(name, monkeypatch):
    """The weights are rounded, what is learned is not: against the reference with the rounded weights in fp32."""
    one, cosines = parity.subject(torch.bfloat16), []
    for seed in (2, 3, 4):
        made = stepping.fitted(monkeypatch, name, one, torch.float32, seed=seed)
        truth = Truth(name, made.method, one)
        theirs = stepping.gradients(truth, parity.learned(made.method, made.before))
        pairs = [(value, theirs[parity.renamed(made.method, key)]) for key, value in made.gradients.items()]
        both = (torch.cat([value.flatten() for value in side]) for side in zip(*pairs, strict=True))
        cosines.append(float(F.cosine_similarity(*both, dim=0)))
        for key, gradient in made.gradients.items():
            assert made.method.tensors[key].dtype == gradient.dtype == torch.float32
            assert not torch.equal(made.method.tensors[key], made.before[key])
    # Rounding turns single units of a narrow ReLU on or off: one start may feel it, not most.
    assert sorted(cosines)[1] > 0.99
    assert min(cosines) > 0.98
    assert {weight.dtype for weight in one.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", parity.LEARNING)
def test_options_for_memory_change_nothing(name, monkeypatch):
    """A batch in parts, and classes in parts whose insides are computed again."""
    one = parity.subject(torch.float64)
    whole = stepping.fitted(monkeypatch, name, one, torch.float64)
    parts = stepping.fitted(monkeypatch, name, one, torch.float64, micro_batch_size=2, class_batch=3)
    assert parts.terms == pytest.approx(whole.terms, rel=1e-9)
    for key, gradient in whole.gradients.items():
        close(parts.gradients[key], gradient, 1e-9)
        close(parts.method.tensors[key], whole.method.tensors[key], 1e-9)


@pytest.mark.parametrize("name", ["coop", "prograd", "maple"])
def test_steps_with_the_schedule_of_coop(name, monkeypatch):
    """A first epoch at the low rate, then a cosine that changes between epochs; momentum and decay over all of them."""
    one = parity.subject(torch.float64)
    made = stepping.fitted(monkeypatch, name, one, torch.float64, epochs=4, schedule="epochs", warmup_lr=1e-3)
    rates = [1e-3, *(stepping.RATE * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(3))]
    wanted = stepping.steps(Truth(name, made.method, one), parity.learned(made.method, made.before), rates)
    for key in made.before:
        theirs = parity.renamed(made.method, key)
        close(made.method.tensors[key], wanted[-1][theirs], 1e-9)
        assert (wanted[-1][theirs] - wanted[0][theirs]).norm() > 1e-4 * wanted[0][theirs].norm()
