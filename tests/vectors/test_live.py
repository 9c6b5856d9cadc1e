"""LIVE against its equation in a forward written out in fp64, and alpha's own learning rate."""

from __future__ import annotations

import pytest
import torch

import steer
from tests.engine.helpers import tokens

from .by_hand import Change, logits_by_hand, wide_llama
from .learned import at_random, check_equation, logits_with
from .subjects import subject


def equation(method, layers) -> Change:
    vectors, alphas = method.tensors["vector"].double(), method.tensors["alpha"].double()

    def shift(layer, h):
        if layer not in layers:
            return h
        place = list(layers).index(layer)
        moved = h + alphas[place] * vectors[place]
        if not method.keep_norm:
            return moved
        return moved * h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)

    return Change(resid=shift) if method.site == "resid_out" else Change(mlp=shift)


@pytest.mark.parametrize("layers", ["all", (2, 0)])
@pytest.mark.parametrize("keep_norm", [True, False])
@pytest.mark.parametrize("site", ["resid_out", "mlp_out"])
def test_it_is_its_equation_at_every_token(site, keep_norm, layers):
    model = wide_llama()
    method = at_random("live", model, scale=2.0, site=site, keep_norm=keep_norm, layers=layers)
    check_equation(model, method, equation(method, range(3) if layers == "all" else layers))


def test_the_forward_written_out_is_the_models_own():
    model, ids = wide_llama(), tokens(2, 9)
    torch.testing.assert_close(logits_by_hand(model, ids, Change()), logits_with(model, ids, None), rtol=0, atol=1e-10)


def test_alpha_is_where_it_was_asked_to_start_and_learns_at_its_own_rate():
    one = subject("llama")

    def moved(rate: float) -> torch.Tensor:
        method = steer.create("live", alpha=0.3, alpha_rate=rate, losses={"ce": 1.0})
        # In the first step v is 0, so that alpha has no gradient; in the second all rates see the same one.
        method.fit(one.model, one.processor, one.examples, dev=[], max_steps=2, progress=False)
        return method.tensors["alpha"] - 0.3

    still, once, thrice = moved(0.0), moved(1.0), moved(3.0)
    assert torch.equal(still, torch.zeros(3))
    assert once.abs().min() > 1e-5
    torch.testing.assert_close(thrice, 3 * once, rtol=1e-3, atol=1e-7)
