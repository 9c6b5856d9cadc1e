"""After any session, whatever happened inside, the model is bit for bit what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import steer
from steer import gates, ops, positions, sites
from steer.errors import SteerError

from .helpers import HEAD_DIM, HEADS, KV_HEADS, WIDTH, randn, tiny_llama, tokens

CHANGES = {
    "residual": lambda: steer.Intervention(sites.resid_out(), ops.Add(randn(WIDTH))),
    "generated": lambda: steer.Intervention(sites.resid_in(positions=positions.last_prompt()), ops.Scale(0.5)),
    "query": lambda: steer.Intervention(
        sites.head_q(), ops.LowRankQuery(randn(HEADS, HEAD_DIM, 2), randn(HEADS, HEAD_DIM, 2))
    ),
    "key": lambda: steer.Intervention(sites.head_k(layers=1), ops.Scale(2.0)),
    "bias": lambda: steer.Intervention(sites.key_bias(layers=[1, 2]), ops.KeyBias(1.0, positions.span(1, 3))),
    "prefix": lambda: steer.Intervention(
        sites.kv_prefix(layers=0), ops.Prefix(randn(KV_HEADS, 2, HEAD_DIM), randn(KV_HEADS, 2, HEAD_DIM))
    ),
    "gated": lambda: steer.Intervention(
        sites.head_out(), ops.Add(randn(HEADS, HEAD_DIM)), gates.Sigmoid(randn(HEADS, HEAD_DIM), minus_lse=True)
    ),
    "cache": lambda: steer.Intervention(sites.cache(layers=1), ops.Apply(lambda k, v: (k, v * 0))),
    "logits": lambda: steer.Intervention(sites.logits(), ops.Scale(2.0)),
}


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything of ours that could be left behind, by identity where identity matters."""
    hooks = {
        (name, kind): tuple(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in vars(nn.Module())
        if "hooks" in kind
    }
    return {
        "hooks": {key: value for key, value in hooks.items() if value},
        "configs": [id(module.__dict__.get("config")) for module in model.modules()],
        "implementation": [getattr(m.__dict__.get("config"), "_attn_implementation", None) for m in model.modules()],
        "instance": sorted(set(model.__dict__) - set(vars(nn.Module()))),
        "attention": dict(AttentionInterface._global_mapping),
        "masks": dict(AttentionMaskInterface._global_mapping),
        "trains": [p.requires_grad for p in model.parameters()],
        "weights": [p._version for p in model.parameters()],
    }


class Sessions(RuleBasedStateMachine):
    """Opens, uses, breaks and closes sessions in any order; between them the model is compared with itself."""

    @initialize(implementation=st.sampled_from(["eager", "sdpa"]))
    def start(self, implementation: str) -> None:
        self.model = tiny_llama(implementation=implementation)
        self.ids = tokens(2, 5)
        self.open: list[Any] = []
        self.before = traces(self.model)
        self.logits = self.model(self.ids).logits

    @precondition(lambda self: len(self.open) < 4)
    @rule(names=st.lists(st.sampled_from(sorted(CHANGES)), max_size=3))
    def enter(self, names: list[str]) -> None:
        self.open.append(steer.attach(self.model, *(CHANGES[n]() for n in names), strict=False).__enter__())

    @precondition(lambda self: len(self.open) < 4)
    @rule(stop=st.booleans())
    def record(self, stop: bool) -> None:
        self.open.append(steer.record(self.model, sites.head_q(layers=1), sites.resid_out(layers=0)).__enter__())
        with steer.record(self.model, sites.resid_out(layers=0), stop=stop):
            self.model(self.ids)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 3))
    def leave_any(self, which: int) -> None:
        self.open.pop(which % len(self.open)).__exit__(None, None, None)

    @rule(error=st.sampled_from([ValueError, KeyboardInterrupt]), names=st.sampled_from(sorted(CHANGES)))
    def raise_inside_a_forward(self, error: type[BaseException], names: str) -> None:
        def fail(x: torch.Tensor) -> torch.Tensor:
            raise error("inside")

        broken = steer.Intervention(sites.head_out(layers=1), ops.Apply(fail))
        with pytest.raises(error, match="inside"), steer.attach(self.model, CHANGES[names](), broken):
            self.model.generate(self.ids, max_new_tokens=2, do_sample=False)

    @rule()
    def refuse(self) -> None:
        good, bad = CHANGES["query"](), steer.Intervention(sites.resid_out(layers=99), ops.Scale(1.0))
        with pytest.raises(SteerError), steer.attach(self.model, good, bad):
            pass

    @precondition(lambda self: self.open)
    @rule()
    def use(self) -> None:
        self.model(self.ids)
        self.model.generate(self.ids, max_new_tokens=2, do_sample=False)

    @invariant()
    def closed_means_restored(self) -> None:
        if getattr(self, "open", None) == []:
            assert traces(self.model) == self.before
            assert torch.equal(self.model(self.ids).logits, self.logits)

    def teardown(self) -> None:
        while getattr(self, "open", []):
            self.open.pop().__exit__(None, None, None)
        self.closed_means_restored()


Sessions.TestCase.settings = settings(deadline=None, max_examples=12, stateful_step_count=10)
TestSessions = Sessions.TestCase


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_an_empty_session_and_identities_are_bit_exact(implementation) -> None:
    model, ids = tiny_llama(implementation=implementation), tokens()
    base = model(ids).logits
    with steer.attach(model):
        assert torch.equal(model(ids).logits, base)
    identities = [
        steer.Intervention(sites.resid_out(), ops.Add(torch.zeros(WIDTH))),
        steer.Intervention(sites.mlp_out(), ops.Add(randn(WIDTH), 0.0, keep_norm=True)),
        steer.Intervention(
            sites.head_q(),
            ops.LowRankQuery(randn(HEADS, HEAD_DIM, 2), torch.zeros(HEADS, HEAD_DIM, 2)),
            gates.Sigmoid(randn(HEADS, HEAD_DIM), layer_norm=True),
        ),
        steer.Intervention(
            sites.head_out(), ops.Add(torch.zeros(HEADS, HEAD_DIM)), gates.Sigmoid(randn(HEADS, HEAD_DIM))
        ),
        steer.Intervention(sites.head_out(heads=[1]), ops.Scale(1.0)),
    ]
    with steer.attach(model, *identities):
        assert torch.equal(model(ids).logits, base)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_session_goes_on_after_an_error_between_attention_and_its_projection(implementation) -> None:
    """What the broken forward kept for its gate is not taken for the next one's."""
    model, ids, change = tiny_llama(implementation=implementation), tokens(), CHANGES["gated"]()
    with steer.attach(model, change):
        truth = model(ids).logits

    def fail(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    broken = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(fail)
    with steer.attach(model, change):
        with pytest.raises(KeyboardInterrupt):
            model(ids)
        broken.remove()
        assert torch.equal(model(ids).logits, truth)
        torch.testing.assert_close(model(ids[:, :4]).logits, truth[:, :4], rtol=1e-4, atol=1e-4)


def test_the_users_own_hooks_and_generate_survive() -> None:
    model, ids, seen = tiny_llama(), tokens(1, 4), []
    model.model.layers[0].register_forward_hook(lambda *a: seen.append("theirs"))
    mine = lambda *a, **k: "mine"  # noqa: E731
    model.generate = mine
    with steer.attach(model, CHANGES["generated"](), strict=False):
        model(ids)
    assert model.generate is mine
    seen.clear()
    model(ids)
    assert seen == ["theirs"]
