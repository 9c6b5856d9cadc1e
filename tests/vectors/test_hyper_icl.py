"""Hyper-ICL's query shift against the paper's form, a term added to the scores, and its anchor's settings."""

from __future__ import annotations

import pytest
import torch

import steer
from tests.engine.helpers import LAYERS

from .by_hand import Change, layer_norm, wide_llama
from .learned import at_random, check_equation
from .subjects import subject


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, {"rank": 2, "layers": (2, 0)}, {"gated": False}], ids=str)
def test_the_query_shift_is_the_papers_term_in_the_scores(fields, implementation):
    model = wide_llama(implementation=implementation)
    method = at_random("hyper_icl", model, **fields)
    layers = fields.get("layers", "all")
    places = list(range(LAYERS) if layers == "all" else layers)
    assert ("weight" in method.tensors) == method.gated

    def term(layer, q, k):
        """Diag(g) (Q U_q) (K U_k)^T / sqrt(r), (B, H, T, S), keys repeated for each query head."""
        if layer not in places:
            return torch.zeros((), dtype=q.dtype)
        mine = {name: value[places.index(layer)].double() for name, value in method.tensors.items()}
        delta = (q @ mine["u_q"]) @ (k @ mine["u_k"]).transpose(-1, -2) / method.rank**0.5
        if not method.gated:
            return delta
        score = torch.einsum("bhtd,hd->bht", layer_norm(q), mine["weight"]) + mine["bias"][:, None]
        return torch.sigmoid(score)[..., None] * delta

    check_equation(model, method, Change(scores=term), tolerance=1e-8)


def test_the_anchors_curvature_and_scale_are_the_methods():
    state, teacher = torch.randn(5, 8).double(), torch.randn(5, 8).double()

    def point(h, curvature, scale):
        """exp at the origin of the hyperboloid, as time and space, equations 10 to 12 as they are written."""
        u = scale * layer_norm(h)
        a = curvature**0.5 * u.norm(dim=-1, keepdim=True)
        return a.cosh() / curvature**0.5, u * a.sinh() / a

    for curvature, scale in ((0.1, 1.0), (0.7, 0.5)):
        (time, space), (time2, space2) = (point(h, curvature, scale) for h in (state, teacher))
        product = -(time * time2).squeeze(-1) + (space * space2).sum(-1)
        truth = (torch.arccosh(-curvature * product) ** 2) / curvature
        anchor = steer.create("hyper_icl", curvature=curvature, scale=scale).state_losses()["lorentz"]
        torch.testing.assert_close(anchor(state, teacher), truth, rtol=1e-8, atol=1e-8)


def test_the_hyperbolic_anchor_fits():
    one = subject("llama")
    method = steer.create("hyper_icl", losses={"lorentz": 1.0, "ce": 0.5}, shots=2, rank=2)
    method.fit(one.model, one.processor, one.examples, dev=[], max_steps=3, lr=1e-2, progress=False)
    history = method.provenance["training"]["history"]
    assert all(entry["lorentz"] > 0 for entry in history)
    assert all(value.isfinite().all() for value in method.tensors.values())
    assert method.tensors["u_k"].abs().max() > 0
