"""Rows written, against plain assignment."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

import steer
from steer import gates, ops, sites
from steer.errors import InterventionError
from tests.prompts.models import build

from .helpers import randn
from .test_restore import traces

IDS = torch.tensor([[2, 4, 6, 23, 0, 0], [2, 5, 7, 9, 8, 23]])
BATCH, LENGTH, TEXT, VISION = *IDS.shape, 32, 24


@pytest.fixture(scope="module")
def clip() -> Any:
    return build("clip")[0]


def written(x: torch.Tensor, vectors: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """One row after the other, by hand; gradients go through."""
    rows = []
    for b in range(len(x)):
        mine = slots if slots.ndim == 1 else slots[b]
        put = {int(s) % x.shape[1]: (vectors if vectors.ndim == 2 else vectors[b])[i] for i, s in enumerate(mine)}
        rows.append(torch.stack([put.get(t, x[b, t]).to(x.dtype) for t in range(x.shape[1])]))
    return torch.stack(rows)


def by_hand(module: nn.Module, function: Any, on_input: bool = False) -> Any:
    """A plain hook on a module's output or first input, to be entered with `with`."""
    stack = ExitStack()
    if on_input:
        handle = module.register_forward_pre_hook(lambda m, a, k: _first(a, k, function), with_kwargs=True)
    else:
        handle = module.register_forward_hook(
            lambda m, a, out: (function(out[0]), *out[1:]) if isinstance(out, tuple) else function(out)
        )
    stack.callback(handle.remove)
    return stack


def _first(args: Any, kwargs: Any, function: Any) -> Any:
    if args:
        return (function(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}


def texts(model: Any) -> torch.Tensor:
    return model.get_text_features(input_ids=IDS, attention_mask=(IDS > 0).long()).pooler_output


WRITES = {
    "one for all": ((2, TEXT), torch.tensor([1, 2])),
    "one for each": ((BATCH, 2, TEXT), torch.tensor([1, 2])),
    "slots of their own": ((2, TEXT), torch.tensor([[1, 2], [3, 1]])),
    "both": ((BATCH, 2, TEXT), torch.tensor([[1, 2], [4, 3]])),
    "from the end": ((2, TEXT), torch.tensor([-1, -5])),
    "both signs": ((1, TEXT), torch.tensor([[-4], [2]])),
    "none": ((0, TEXT), torch.zeros(0, dtype=torch.long)),
}


@pytest.mark.parametrize("called", [False, True], ids=["given", "asked"])
@pytest.mark.parametrize("place", ["words", "layer"])
@pytest.mark.parametrize("name", list(WRITES))
def test_write_is_plain_assignment_with_its_gradients(clip: Any, name: str, place: str, called: bool) -> None:
    shape, slots = WRITES[name]
    vectors = randn(*shape).requires_grad_()
    site = sites.token_embeddings() if place == "words" else sites.resid_in(1)
    module = clip.text_model.embeddings.token_embedding if place == "words" else clip.text_model.encoder.layers[1]
    with by_hand(module, lambda x: written(x, vectors, slots), on_input=place == "layer"):
        wanted = texts(clip)
    op = ops.Write(lambda: vectors, lambda: slots) if called else ops.Write(vectors, slots)
    with steer.attach(clip, steer.Intervention(site, op)):
        got = texts(clip)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    if vectors.numel():
        weights = randn(*got.shape, seed=1)
        (truth,) = torch.autograd.grad((wanted * weights).sum(), vectors)
        (found,) = torch.autograd.grad((got * weights).sum(), vectors)
        assert truth.abs().max() > 1e-3
        torch.testing.assert_close(found, truth)


def test_a_function_is_asked_in_every_forward(clip: Any) -> None:
    values = iter([randn(1, TEXT), randn(1, TEXT, seed=1)])
    write = steer.Intervention(sites.token_embeddings(), ops.Write(lambda: next(values), torch.tensor([1])))
    with steer.attach(clip, write), torch.no_grad():
        first, second = texts(clip), texts(clip)
    assert (first - second).abs().max() > 1e-3
    with steer.attach(clip, steer.Intervention(sites.token_embeddings(), ops.Write(randn(1, TEXT), torch.tensor([1])))):
        torch.testing.assert_close(texts(clip), first)


WRONG = {
    "slots beyond the end": (randn(2, TEXT), torch.tensor([1, LENGTH]), "6 rows"),
    "slots before the start": (randn(2, TEXT), torch.tensor([-7, 0]), "-7"),
    "too many vectors": (randn(3, TEXT), torch.tensor([1, 2]), "2 slots"),
    "another width": (randn(2, TEXT + 1), torch.tensor([1, 2]), str(TEXT + 1)),
    "another batch": (randn(3, 2, TEXT), torch.tensor([1, 2]), "batch of 2"),
    "slots of another batch": (randn(2, TEXT), torch.tensor([[1, 2]] * 3), "batch of 2"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_does_not_fit_is_named(clip: Any, name: str) -> None:
    vectors, slots, said = WRONG[name]
    before = traces(clip)
    write = steer.Intervention(sites.token_embeddings(), ops.Write(vectors, slots))
    with pytest.raises(InterventionError, match=said) as caught, steer.attach(clip, write):
        texts(clip)
    assert "token_embeddings text" in str(caught.value)
    assert traces(clip) == before


def test_rows_take_no_gate_and_no_other_site() -> None:
    write, append = ops.Write(randn(1, TEXT), torch.tensor([0])), ops.Append(randn(1, VISION))
    for op, site in ((append, sites.resid_out(0, "vision")), (ops.Drop(1), sites.embeddings("vision"))):
        with pytest.raises(InterventionError):
            steer.Intervention(site, op)
    clip, _ = build("clip")
    with pytest.raises(InterventionError, match="gate"):
        steer.attach(clip, steer.Intervention(sites.resid_in(0), write, gates.Given(torch.tensor(0.5)))).__enter__()


def test_bf16_models_are_written_to_and_fp32_vectors_learn() -> None:
    model = build("clip")[0].bfloat16()
    vectors, slots = randn(2, TEXT).requires_grad_(), torch.tensor([1, 2])
    with steer.attach(model, steer.Intervention(sites.token_embeddings(), ops.Write(vectors, slots))):
        with steer.record(model, sites.token_embeddings()) as acts:
            made = texts(model)
    assert made.dtype == torch.bfloat16
    assert torch.equal(acts["token_embeddings"][:, 1:3], vectors.detach().bfloat16().expand(BATCH, -1, -1))
    made.float().square().sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.dtype == torch.float32
    assert vectors.grad.abs().max() > 0
