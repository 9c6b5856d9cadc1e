"""A session runs Triton's kernels where the dispatcher has them, and gives what the torch ones give.

On CUDA the dispatcher picks them by itself; here `prefer` does, and Triton's interpreter runs them.
"""

from __future__ import annotations

import functools

import pytest
import torch

import steer
import steer_kernels
from steer import Intervention, gates, ops, positions, sites
from steer.errors import InterventionError
from steer_kernels import dispatch

from .helpers import HEAD_DIM, HEADS, LAYERS, WIDTH, randn, tiny_llama, tokens

ODD = [1, 3, 6]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gate(heads=HEADS, **more):
    return gates.Sigmoid(randn(heads, HEAD_DIM, seed=5), randn(heads, seed=6), **more)


def cases():
    """What is attached, by the operation that must run for it."""
    v, per_head = randn(WIDTH, seed=1), randn(HEADS, HEAD_DIM, seed=2)
    u_q, u_k = randn(HEADS, HEAD_DIM, 4, seed=3, scale=0.3), randn(HEADS, HEAD_DIM, 4, seed=4, scale=0.3)
    last = {"positions": positions.generated()}
    spans = {"positions": positions.span(2, 5)}
    return {
        "K1": ("shift", Intervention(sites.resid_out(), ops.Add(v, 0.5))),
        "K1 somewhere": ("shift", Intervention(sites.resid_in([1], **spans), ops.Add(v))),
        "K1 at heads": ("shift", Intervention(sites.head_out([0], heads=ODD), ops.Add(per_head[ODD]))),
        "K2": ("shift", Intervention(sites.mlp_out(), ops.Add(v, 0.5, keep_norm=True))),
        "ICV": ("shift", Intervention(sites.mlp_out(), ops.Add(v, 0.1, True, True), gates.Cosine())),
        "K3": ("head_shift", Intervention(sites.head_out(), ops.Add(per_head), gate(minus_lse=True))),
        "K3 of some heads": (
            "head_shift",
            Intervention(sites.head_out([1], heads=ODD, **last), ops.Add(per_head[ODD]), gate(3, layer_norm=True)),
        ),
        "K4": ("query_shift", Intervention(sites.head_q(), ops.LowRankQuery(u_q, u_k), gate(layer_norm=True))),
        "K4 given": ("query_shift", Intervention(sites.head_q([2]), ops.LowRankQuery(u_q, u_k))),
        "K5": ("key_bias", Intervention(sites.key_bias([0, 1]), ops.KeyBias(1.5, positions.span(1, 4)))),
    }


@pytest.fixture
def ran(monkeypatch):
    """The operations that ran in Triton, as often as they did."""
    names = []

    def spied(name, function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            names.append(name)
            return function(*args, **kwargs)

        return run

    dispatch.ready("cuda")
    for name, function in dispatch._FOUND.items():
        if function is not None:
            monkeypatch.setitem(dispatch._FOUND, name, spied(name, function))
    return names


@pytest.mark.parametrize("name", cases())
def test_a_session_launches_triton_and_agrees_with_torch(name, ran):
    operation, item = cases()[name]
    model, ids = tiny_llama().to(DEVICE), tokens(2, 7).to(DEVICE)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    how = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = torch.stack(model.generate(ids, attention_mask=mask, **how).logits)
    written = {}
    for choice in ("torch", "triton"):
        with steer_kernels.prefer(choice), steer.attach(model, item, strict=True):
            written[choice] = torch.stack(model.generate(ids, attention_mask=mask, **how).logits)
        assert set(ran) == (set() if choice == "torch" else {operation})
    assert not torch.allclose(written["torch"], plain, atol=1e-4)
    torch.testing.assert_close(written["triton"], written["torch"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", cases())
def test_the_dispatcher_would_pick_triton_on_cuda(name):
    operation, _ = cases()[name]
    with steer_kernels.prefer("auto"):
        assert dispatch.best(operation, "cuda").__module__ == f"steer_kernels.fused.{operation}"
        assert dispatch.best(operation, "cpu").__module__ == f"steer_kernels.{operation}"


def test_what_trains_gets_its_gradient_through_triton(ran):
    model, ids = tiny_llama().to(DEVICE), tokens(2, 5).to(DEVICE)
    start = {
        "v": randn(LAYERS, WIDTH, seed=1),
        "per_head": randn(LAYERS, HEADS, HEAD_DIM, seed=2),
        "w": randn(LAYERS, HEADS, HEAD_DIM, seed=3),
        "b": randn(LAYERS, HEADS, seed=4),
        "u_q": randn(LAYERS, HEADS, HEAD_DIM, 2, seed=5),
        "u_k": randn(LAYERS, HEADS, HEAD_DIM, 2, seed=6),
    }
    found = {}
    for choice in ("torch", "triton"):
        t = {name: value.to(DEVICE, copy=True).requires_grad_() for name, value in start.items()}
        items = [
            Intervention(sites.resid_out(), ops.Add(t["v"], 0.1, keep_norm=True)),
            Intervention(
                sites.head_out(), ops.Add(t["per_head"]), gates.Sigmoid(t["w"], t["b"], minus_lse=True, layer_norm=True)
            ),
            Intervention(sites.head_q(), ops.LowRankQuery(t["u_q"], t["u_k"]), gates.Sigmoid(t["w"], t["b"])),
        ]
        with steer_kernels.prefer(choice), steer.attach(model, *items):
            loss = model(input_ids=ids).logits.logsumexp(-1).square().sum()
        found[choice] = torch.autograd.grad(loss, list(t.values()))
    assert set(ran) == {"shift", "head_shift", "query_shift"}
    for name, mine, theirs in zip(start, found["triton"], found["torch"], strict=True):
        assert float(theirs.abs().max()) > 0, name
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()), msg=name)


@pytest.mark.parametrize("name", cases())
def test_a_session_on_triton_is_one_graph_under_torch_compile(name):
    """Nothing is imported, and no operator left, while torch compiles."""
    operation, item = cases()[name]
    model, ids = tiny_llama().to(DEVICE), tokens(2, 7).to(DEVICE)
    seen = []

    def backend(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch._dynamo.reset()
    with steer_kernels.prefer("triton"), steer.attach(model, item, strict=False):
        want = model(ids, use_cache=False).logits
        compiled = torch.compile(lambda i: model(i, use_cache=False).logits, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(ids), want, rtol=1e-4, atol=1e-4)
    if "of some heads" not in name:  # its positions are generated ones, of which there are none here
        assert any(f"steer.{operation}" in target for target in seen), seen


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_through_checkpoints_are_the_same(reentrant):
    model, ids = tiny_llama().to(DEVICE), tokens(2, 5).to(DEVICE)
    t = {
        "v": randn(WIDTH, seed=1),
        "per_head": randn(HEADS, HEAD_DIM, seed=2),
        "u_q": randn(HEADS, HEAD_DIM, 2, seed=5),
    }
    t = {name: value.to(DEVICE).requires_grad_() for name, value in t.items()}
    items = [
        Intervention(sites.resid_out(), ops.Add(t["v"], 0.1, keep_norm=True)),
        Intervention(sites.head_out(), ops.Add(t["per_head"]), gate()),
        Intervention(sites.head_q(), ops.LowRankQuery(t["u_q"], randn(HEADS, HEAD_DIM, 2, seed=6)), gate()),
        Intervention(sites.key_bias(), ops.KeyBias(0.5, positions.span(0, 3))),
    ]
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with steer_kernels.prefer("triton"), steer.attach(model, *items):
            states = model.get_input_embeddings()(ids).requires_grad_()
            loss = model(inputs_embeds=states, use_cache=False).logits.logsumexp(-1).square().sum()
            loss.backward()
        found.append([x.grad for x in t.values()])
        for x in t.values():
            x.grad = None
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


def test_a_gate_cannot_read_what_is_not_made_yet():
    """Sums of scores at head_q: it was taken for a gate without them."""
    low_rank = ops.LowRankQuery(randn(HEADS, HEAD_DIM, 2), randn(HEADS, HEAD_DIM, 2))
    with pytest.raises(InterventionError, match=r"log-sum-exp.*head_q.*head_out or key_bias"):
        Intervention(sites.head_q(), low_rank, gate(minus_lse=True))


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match=r"auto, torch, triton.*'cuda'"), steer_kernels.prefer("cuda"):
        pass
