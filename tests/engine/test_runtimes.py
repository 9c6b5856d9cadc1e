"""Sessions under torch.compile, on quantised models, and under gradient checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import steer
from steer import gates, ops, positions, sites

from .helpers import HEAD_DIM, HEADS, KV_HEADS, LAYERS, WIDTH, randn, tiny_llama, tokens

CHANGES = {
    "residual": lambda: steer.Intervention(sites.resid_out(), ops.Add(randn(WIDTH), keep_norm=True)),
    "head": lambda: steer.Intervention(sites.head_out(heads=[1, 3]), ops.Scale(0.5)),
    "gated": lambda: steer.Intervention(
        sites.head_out(), ops.Add(randn(HEADS, HEAD_DIM)), gates.Sigmoid(randn(HEADS, HEAD_DIM), minus_lse=True)
    ),
    "query": lambda: steer.Intervention(
        sites.head_q(), ops.LowRankQuery(randn(HEADS, HEAD_DIM, 2), randn(HEADS, HEAD_DIM, 2))
    ),
    "rows": lambda: steer.Intervention(sites.resid_in(positions=positions.span(2, 5)), ops.Scale(0.5)),
    "bias": lambda: steer.Intervention(sites.key_bias(), ops.KeyBias(1.0, positions.span(2, 5))),
    "prefix": lambda: steer.Intervention(
        sites.kv_prefix(), ops.Prefix(randn(KV_HEADS, 2, HEAD_DIM), randn(KV_HEADS, 2, HEAD_DIM))
    ),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_session_is_one_graph_under_torch_compile(name) -> None:
    """fullgraph=True raises at any graph break."""
    model, ids = tiny_llama(), tokens(1, 8)
    torch._dynamo.reset()
    with torch.no_grad(), steer.attach(model, CHANGES[name]()) as session:
        plain = model(ids, use_cache=False).logits
        compiled = torch.compile(lambda i: model(i, use_cache=False).logits, backend="eager", fullgraph=True)
        assert torch.equal(compiled(ids), plain)
        assert torch.equal(compiled(ids), plain)
    assert all(line.traced for line in session.report().lines)


class EightBit(nn.Module):
    """A linear layer that keeps int8 weights and scales, as quantised ones do; it has no float weight to read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).T


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_quantised_projections_are_called_and_not_read(name) -> None:
    """The same model with its quantised weights written back as floats gives the same steered logits."""
    model, twin, ids = tiny_llama(), tiny_llama(), tokens()
    for source, target in zip(model.model.layers, twin.model.layers, strict=True):
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            quantised = EightBit(getattr(source.self_attn, projection))
            setattr(source.self_attn, projection, quantised)
            getattr(target.self_attn, projection).weight.copy_(quantised.weight.float() * quantised.scale)
    with steer.attach(twin, CHANGES[name]()):
        truth = twin(ids).logits
    with steer.attach(model, CHANGES[name]()):
        torch.testing.assert_close(model(ids).logits, truth, rtol=1e-5, atol=1e-5)


def test_gradients_are_the_same_with_checkpointing() -> None:
    model, ids = tiny_llama().train(), tokens()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        v = randn(LAYERS, HEADS, HEAD_DIM).requires_grad_()
        w = randn(HEADS, HEAD_DIM, seed=1).requires_grad_()
        change = steer.Intervention(sites.head_out(), ops.Add(v), gates.Sigmoid(w, minus_lse=True))
        with steer.attach(model, change):
            model(ids, use_cache=False).logits.logsumexp(-1).sum().backward()
        found.append((v.grad, w.grad))
    torch.testing.assert_close(found[0], found[1])
