"""HiFICL against the paper's form, a mixture of two attentions, and how far from the model it starts."""

from __future__ import annotations

import pytest
import torch

from tests.engine.helpers import HEADS, KV_HEADS, LAYERS

from .by_hand import Change, lse_of, wide_llama
from .learned import at_random, at_the_start, check_equation


def mixture(method, places) -> Change:
    """(1 - mu) O + mu softmax(q K_v^T / sqrt(d)) V_v, with K_v = K_A K_B and V_v = V_A V_B of the head's group."""

    def mixed(layer, o, q, scores, seen):
        if layer not in places:
            return o
        mine = {name: value[places.index(layer)].double() for name, value in method.tensors.items()}
        keys, values = (
            (mine[f"{kind}_a"] @ mine[f"{kind}_b"]).repeat_interleave(HEADS // KV_HEADS, dim=0) for kind in "kv"
        )
        virtual = torch.einsum("bthd,hnd->bthn", q, keys) / q.shape[-1] ** 0.5
        mu = torch.sigmoid(virtual.logsumexp(-1) - lse_of(scores, seen))[..., None]
        return (1 - mu) * o + mu * torch.einsum("bthn,hnd->bthd", virtual.softmax(-1), values)

    return Change(heads=mixed)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"virtual": 3, "rank": 2, "layers": (2, 0)}], ids=str)
def test_virtual_demonstrations_are_the_papers_mixture(fields, implementation):
    model = wide_llama(implementation=implementation)
    method = at_random("hificl", model, **fields)
    layers = fields.get("layers", "all")
    check_equation(model, method, mixture(method, list(range(LAYERS) if layers == "all" else layers)), tolerance=1e-8)


def test_it_starts_where_empty_demonstrations_take_their_share_of_attention():
    model = wide_llama()
    method = at_the_start("hificl", model)
    assert method.tensors["v_b"].abs().max() == 0
    assert method.tensors["k_b"].abs().max() > 0
    check_equation(model, method, mixture(method, list(range(LAYERS))), tolerance=1e-6)

    def shrunk(layer, o, q, scores, seen):
        """Keys near 0 make scores near 0: n of them stand beside the sum over the real ones."""
        mu = torch.sigmoid(torch.tensor(method.virtual).log() - lse_of(scores, seen))
        return (1 - mu[..., None]) * o

    check_equation(model, method, Change(heads=shrunk), tolerance=2e-2)
