"""`key_bias` in torch and in Triton: the widened tensors, column by column, and the attention that they give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steer_kernels
from steer_kernels.fused import key_bias as fused
from tests.kernels.settings import DEVICE, EXAMPLES, check, poison

WAYS = {"torch": steer_kernels.key_bias.reference, "triton": fused.key_bias}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def truth(query, key, value, a, b, scaling, extra):
    """Zeros that are written to, in fp64; differentiable."""
    made = []
    for x, factors in ((query, a.double() / scaling), (key, b.double()), (value, None)):
        wide = torch.zeros(*x.shape[:3], x.shape[3] + extra, dtype=torch.float64, device=x.device)
        wide[..., : x.shape[3]] = x.double()
        if factors is not None:
            wide[..., x.shape[3] : x.shape[3] + factors.shape[3]] = factors
        made.append(wide)
    return made


@st.composite
def problems(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    heads, length, total = kv_heads * groups, draw(st.sampled_from((1, 3, 19))), draw(st.sampled_from((1, 5, 33)))
    width, value_width = draw(st.sampled_from(((4, 4), (8, 5), (40, 32), (64, 64), (192, 128), (1, 1))))
    dtype, rank = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 3))
    made = []
    for shape in ((heads, length, width), (kv_heads, total, width), (kv_heads, total, value_width)):
        x = torch.randn(batch, *shape, generator=generator).to(dtype)
        layout = draw(st.sampled_from(("plain", "turned", "sliced", "expanded")))
        if layout == "turned":
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "sliced":
            x = torch.cat([x, x], -1)[..., shape[2] // 2 : shape[2] // 2 + shape[2]]
        made.append((x[:1].expand_as(x) if layout == "expanded" else x).to(DEVICE))
    for lead in ((batch, heads, length), (batch, kv_heads, total)):
        shape = [draw(st.sampled_from((1, n))) for n in lead[:2]]
        factors = torch.randn(*shape, draw(st.sampled_from((1, lead[2]))), rank, generator=generator)
        made.append(factors.transpose(0, -1).contiguous().transpose(0, -1).to(DEVICE))
    return made, draw(st.sampled_from((0.5, 3.0))), rank + draw(st.sampled_from((0, 1, 5)))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=2 * EXAMPLES)
@given(problem=problems())
def test_forward_and_backward(way, problem):
    tensors, scaling, extra = problem
    tensors = [x.detach().requires_grad_() for x in tensors]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        got = WAYS[way](*tensors, scaling, extra)
        plain = WAYS[way](*[x.detach() for x in tensors], scaling, extra)
        weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x) for x in got]
        found = torch.autograd.grad(got, tensors, weights)
    exact = [x.detach().double().requires_grad_() for x in tensors]
    want = truth(*exact, scaling, extra)
    back = torch.autograd.grad(want, exact, [w.double() for w in weights])
    for mine, again, theirs, x in zip(got, plain, want, tensors[:3], strict=True):
        assert mine.dtype == x.dtype
        assert torch.equal(mine, again)
        assert torch.equal(mine[..., : x.shape[3]], x)
        check(mine, theirs.detach())
    for mine, theirs, x in zip(found, back, tensors, strict=True):
        assert mine.dtype == x.dtype
        check(mine, theirs)


@pytest.mark.parametrize("way", WAYS)
def test_the_scores_get_the_bias(way):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 7, 16), torch.randn(2, 2, 7, 8)
    a, b = torch.randn(2, 4, 5, 2), torch.randn(1, 2, 7, 2)
    wide = WAYS[way](*(x.to(DEVICE) for x in (query, key, value, a, b)), 0.25, 8)
    q, k, v = (x.cpu().double() for x in wide)
    scores = 0.25 * q @ k.repeat_interleave(2, 1).mT
    bias = a.double() @ b.double().repeat_interleave(2, 1).mT
    want = 0.25 * query.double() @ key.double().repeat_interleave(2, 1).mT + bias
    torch.testing.assert_close(scores, want, rtol=1e-5, atol=1e-5)
    got = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    assert not got[..., 8:].any()
    torch.testing.assert_close(
        got[..., :8], want.softmax(-1) @ value.double().repeat_interleave(2, 1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_row_spoils_only_itself(way):
    tensors = [torch.randn(1, 2, n, w, device=DEVICE) for n, w in ((3, 4), (5, 4), (5, 4), (3, 1), (5, 1))]
    clean = WAYS[way](*tensors, 0.5, 3)
    tensors[0][0, 1, 2, 0], tensors[3][0, 0, 1], tensors[4][0, 1, 4] = float("nan"), float("inf"), float("nan")
    query, key, value = WAYS[way](*tensors, 0.5, 3)
    assert query.isnan().nonzero().tolist() == [[0, 1, 2, 0]]
    assert query.isinf().nonzero().tolist() == [[0, 0, 1, 4]]
    assert key.isnan().nonzero().tolist() == [[0, 1, 4, 4]]
    assert torch.equal(value, clean[2])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes", [(0, 2, 3, 5), (1, 2, 0, 5), (1, 2, 3, 0)])
def test_empty_ones(way, sizes):
    batch, heads, length, total = sizes
    query, key = (torch.randn(batch, heads, n, 4, device=DEVICE) for n in (length, total))
    a, b = (torch.ones(batch, 1, n, 1, device=DEVICE) for n in (length, total))
    made = WAYS[way](query, key, key, a, b, 0.5, 4)
    assert [x.shape for x in made] == [(batch, heads, n, 8) for n in (length, total, total)]
    assert torch.equal(made[1][..., :4], key)


@pytest.mark.parametrize("way", WAYS)
def test_fp64_gradients(way):
    torch.manual_seed(0)
    shapes = ((2, 2, 2, 3), (2, 1, 3, 3), (2, 1, 3, 2), (1, 2, 2, 2), (2, 1, 3, 2))
    tensors = [torch.randn(s, dtype=torch.float64, device=DEVICE).requires_grad_() for s in shapes]
    assert torch.autograd.gradcheck(lambda *x: WAYS[way](*x, 0.7, 3), tensors)


def test_the_operator_is_a_good_citizen():
    shapes = ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 4), (1, 4, 3, 1), (2, 1, 5, 1))
    tensors = [torch.randn(s, device=DEVICE).requires_grad_() for s in shapes]
    torch.library.opcheck(fused.operator, (*tensors, 0.5, 8))
    turned = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    torch.library.opcheck(fused.operator, (*turned, 0.5, 1))
    torch.library.opcheck(fused.operator, (*(x.double() for x in turned), 0.5, 1))


def test_compiled_code_keeps_the_operator_whole():
    shapes = ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 4), (1, 4, 3, 1), (2, 1, 5, 1))
    tensors = [torch.randn(s, device=DEVICE).requires_grad_() for s in shapes]
    step = torch.compile(lambda *x: fused.key_bias(x[0] * 2, *x[1:], 0.5, 8), fullgraph=True, backend="aot_eager")
    got = step(*tensors)
    want = truth(tensors[0] * 2, *tensors[1:], 0.5, 8)
    for mine, theirs in zip(got, want, strict=True):
        check(mine.detach(), theirs.detach())
    found = torch.autograd.grad(sum(x.square().sum() for x in got), tensors)
    for mine, theirs in zip(found, torch.autograd.grad(sum(x.square().sum() for x in want), tensors), strict=True):
        check(mine, theirs)


def test_the_dispatcher_runs_either():
    tensors = [torch.randn(1, 1, 3, w) for w in (4, 4, 4, 1, 1)]
    plain = steer_kernels.key_bias(*tensors, 0.5, 4)
    with steer_kernels.prefer("triton"):
        assert steer_kernels.best("key_bias", "cpu") is fused.key_bias
        for mine, theirs in zip(steer_kernels.key_bias(*(x.to(DEVICE) for x in tensors), 0.5, 4), plain, strict=True):
            assert torch.equal(mine.cpu(), theirs)


GOOD = dict(
    zip(
        ("query", "key", "value", "a", "b"),
        (torch.zeros(s, device=DEVICE) for s in ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 4), (1, 4, 3, 1), (2, 1, 5, 1))),
        strict=True,
    )
)
WRONG = {
    "a value of another length": ({"value": GOOD["value"][:, :, :4]}, ["[2, 2, 4, 4]"]),
    "a key of another width": ({"key": GOOD["value"]}, ["[2, 4, 3, 8]", "[2, 2, 5, 4]"]),
    "a for two heads of four": ({"a": GOOD["a"][:, :2]}, ["a is", "4 or 1", "[1, 2, 3, 1]"]),
    "b for each query head": ({"b": GOOD["b"].expand(2, 4, 5, 1)}, ["b is", "2 or 1", "[2, 4, 5, 1]"]),
    "more factors than columns": ({"extra": 0}, ["extra=0"]),
    "unequal numbers of factors": ({"a": GOOD["a"].expand(1, 4, 3, 2)}, ["2", "1"]),
    "no scaling": ({"scaling": 0.0}, ["scaling is 0"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(way, wrong):
    changed, facts = WRONG[wrong]
    with pytest.raises(ValueError) as error:
        WAYS[way](**{**GOOD, "scaling": 0.5, "extra": 8, **changed})
    assert all(fact in str(error.value) for fact in facts), str(error.value)
