"""Every preset against the reference: its own scores, and the model's own call inside `steer.attach`."""

from __future__ import annotations

import pytest
import torch

import steer
from tests.prompts import parity
from tests.prompts.truth import Truth

BARS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def close(ours: torch.Tensor, theirs: torch.Tensor, bar: float) -> None:
    """The length of the difference against the length of what is right."""
    assert ours.shape == theirs.shape
    assert (ours.double() - theirs.double()).norm() <= bar * theirs.double().norm()


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("name", parity.OPTIONS)
def test_logits(name, dtype):
    # Tip-Adapter's authors write 100 for the scale of the model.
    one = parity.subject(dtype, scale=100.0 if name == "tip_adapter" else 10.0)
    wide, bar = one.images.dtype, BARS[dtype]
    if name == "tip_adapter" and dtype == torch.bfloat16:
        bar = 3e-2  # the scale itself is 98.9 when it is rounded
    method = parity.bound(name, one, wide)
    learned = {} if method.cache else parity.learned(method, {k: v for k, v in method.tensors.items() if k != "slots"})
    with torch.no_grad():
        wanted = Truth(name, method, one).logits(learned)
        plain = Truth("zero_shot", method, one).logits({})
        with steer.attach(one.model, method):
            called = one.model(**method.inputs(parity.PICTURES))
    close(method.scores(parity.PICTURES), wanted, bar)
    close(called.logits_per_image, wanted, bar)
    close(called.logits_per_text, wanted.T, bar)
    if method.learns:
        assert (wanted - plain).norm() > 0.015 * plain.norm(), "what is learned has to matter for this test to"
