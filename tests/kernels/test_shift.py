"""`shift` in torch and in Triton against its formula in fp64: K1, K2, the ICV factor, their gradients."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steer_kernels
from steer_kernels._pieces import pieces
from steer_kernels.fused import shift as fused
from tests.kernels.compiles import compiles, job
from tests.kernels.settings import DEVICE, EXAMPLES, check, peak, poison

FLAGS = [
    dict(zip(("keep_norm", "relative", "cosine"), on, strict=True)) for on in itertools.product((False, True), repeat=3)
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WAYS = {"torch": steer_kernels.shift.reference, "triton": fused.shift}


def truth(h, v, gate, rows, scale, keep_norm, relative, cosine):
    """Row by row in fp64, as the formula reads; differentiable."""
    h, v = h.double(), v.double().expand(h.shape)
    c = torch.full((*h.shape[:-1], 1), scale, dtype=torch.float64, device=h.device)
    if gate is not None:
        c = c * gate.double()
    length = (h * h).sum(-1, keepdim=True).sqrt()
    if relative:
        c = c * length
    if cosine:
        cos = (h * v).sum(-1, keepdim=True) / (length * (v * v).sum(-1, keepdim=True).sqrt())
        c = c * (1 + torch.where(cos < 0, -cos, 0.0))
    u = h + c * v
    if keep_norm:
        u = u * length / (u * u).sum(-1, keepdim=True).sqrt()
    return u if rows is None else torch.where(rows[..., None].expand(u.shape), u, h)


@st.composite
def problems(draw):
    """Shapes, strides and masks; at head sites v has a row a head."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, length, heads = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.sampled_from((None, 1, 3)))
    width = draw(st.sampled_from((1, 5, 32, 37, 96, 130)))
    dtype = draw(st.sampled_from(DTYPES))
    lead = (batch, length) if heads is None else (batch, length, heads)
    layout = draw(st.sampled_from(("plain", "rows", "columns", "turned", "expanded")))
    big = torch.randn(*lead[:1], lead[1] + 2, *lead[2:], 2 * width, generator=generator)
    h = {
        "plain": lambda: big[:, 2:, ..., :width].contiguous(),
        "rows": lambda: big[:, 1:-1, ..., :width],
        "columns": lambda: big[:, 2:, ..., ::2],
        "turned": lambda: big[:, 2:, ..., :width].transpose(1, -2).contiguous().transpose(1, -2),
        "expanded": lambda: big[:, :1, ..., :width].expand(*lead, width),
    }[layout]().to(dtype)
    v = torch.randn(*(() if heads is None or draw(st.booleans()) else (heads,)), width, generator=generator)
    gate = draw(st.sampled_from((None, "each", "row", "one")))
    if gate is not None:
        shape = {"each": (*lead, 1), "row": (batch, length, *[1] * (len(lead) - 2), 1), "one": ()}[gate]
        gate = torch.rand(shape, generator=generator)
    rows = draw(st.sampled_from((None, "some", "none", "shared")))
    if rows is not None:
        rows = (
            torch.rand(lead if rows == "some" else (batch, length, *[1] * (len(lead) - 2)), generator=generator) > 0.4
        )
        rows = rows & (rows if draw(st.booleans()) else False)
    return [x if x is None else x.to(DEVICE) for x in (h, v, gate, rows)], draw(st.sampled_from((1.0, -0.7)))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=EXAMPLES)
@given(problem=problems(), flags=st.sampled_from(FLAGS))
def test_forward_and_backward(way, problem, flags):
    (h, v, gate, rows), scale = problem
    h, v = h.detach(), v.requires_grad_()
    h.requires_grad_()
    gate = None if gate is None else gate.requires_grad_()
    asked = [x for x in (h, v, gate) if x is not None]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        got = WAYS[way](h, v, gate, rows, scale=scale, **flags)
        grad = torch.randn(got.shape, device="cpu", generator=torch.Generator().manual_seed(1)).to(got)
        found = torch.autograd.grad(got, asked, grad)
    exact = [x.detach().double().requires_grad_() for x in asked]
    want = truth(exact[0], exact[1], exact[2] if gate is not None else None, rows, scale, **flags)
    check(got, want.detach())
    for mine, theirs in zip(found, torch.autograd.grad(want, exact, grad.double()), strict=True):
        assert mine.dtype == (h.dtype if mine.shape == h.shape and mine is found[0] else torch.float32)
        # sums over rows of numbers that were rounded to half precision on the way in
        check(mine, theirs, 1e-5 if h.dtype == torch.float32 else 2e-3, size=peak(grad))
    if rows is not None:
        still = ~rows.expand(h.shape[:-1])
        assert torch.equal(got[still], h[still])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keep_norm", [False, True])
def test_every_row_of_every_head_is_its_own(way, keep_norm):
    """Sizes that share divisors: a row number taken apart in a wrong way then misses rows."""
    generator = torch.Generator().manual_seed(0)
    h, v = torch.randn(2, 6, 4, 40, generator=generator), torch.randn(4, 40, generator=generator)
    gate, rows = torch.rand(2, 6, 4, 1, generator=generator), torch.rand(2, 6, 4, generator=generator) > 0.3
    given = [x.to(DEVICE) for x in (h, v, gate, rows)]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        got = WAYS[way](*given, keep_norm=keep_norm)
    check(got, truth(*given, 1.0, keep_norm, False, False))


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("heads", [None, 3])
def test_large_tensors_are_worked_on_in_pieces(flags, heads, monkeypatch):
    lead = (2, 7) if heads is None else (2, 7, heads)
    h, v = torch.randn(*lead, 40).bfloat16(), torch.randn(*([] if heads is None else [heads]), 40)
    gate, rows = torch.rand(*lead, 1), torch.rand(lead) > 0.5
    want = steer_kernels.shift.reference(h, v, gate, rows, scale=0.5, **flags)
    seen = []
    monkeypatch.setattr(sys.modules["steer_kernels._pieces"], "CHUNK", 20)
    monkeypatch.setattr(sys.modules["steer_kernels.shift"], "PIECE", 200)
    monkeypatch.setattr(sys.modules["steer_kernels.shift"], "pieces", lambda *a: seen.extend(pieces(*a)) or seen)
    assert torch.equal(steer_kernels.shift.reference(h, v, gate, rows, scale=0.5, **flags), want)
    assert len(seen) > 1


@pytest.mark.parametrize("flags", FLAGS)
def test_in_place(flags):
    h = torch.randn(2, 5, 3, 40, device=DEVICE)[:, ::2]
    v, before = torch.randn(40, device=DEVICE), h.clone()
    want = fused.shift(h, v, **flags)
    assert fused.shift_(h, v, **flags) is h
    assert torch.equal(h, want)
    assert not torch.equal(h, before)
    steer_kernels.shift_.reference(before, v, **flags)
    check(before, want.double())


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_row_spoils_only_itself(way):
    h, v = torch.randn(6, 40, device=DEVICE), torch.randn(40, device=DEVICE)
    clean = WAYS[way](h, v, keep_norm=True)
    h[1, 3], h[4, 0] = float("nan"), float("inf")
    got = WAYS[way](h, v, keep_norm=True)
    assert got[1].isnan().all()
    assert got[4].isnan().any()
    good = [0, 2, 3, 5]
    assert torch.equal(got[good], clean[good])
    left_out = WAYS[way](
        h, v, None, torch.tensor([True, False, True, True, False, True], device=DEVICE), keep_norm=True
    )
    assert torch.equal(left_out[4], h[4])
    assert torch.equal(left_out[1].isnan(), h[1].isnan())


@pytest.mark.parametrize("way", WAYS)
def test_large_activations_do_not_overflow(way):
    h = torch.full((1, 300), 6e4, dtype=torch.float16, device=DEVICE)
    got = WAYS[way](h, torch.ones(300, device=DEVICE), keep_norm=True)
    assert torch.equal(got, h)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flags", FLAGS)
def test_a_zero_row_and_a_zero_vector(way, flags):
    h = torch.zeros(2, 8, device=DEVICE, requires_grad=True)
    v = torch.zeros(8, device=DEVICE, requires_grad=True)
    got = WAYS[way](h, v, **flags)
    assert torch.equal(got, h)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), (h, v)))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (2, 3, 0)])
def test_nothing_to_move(shape):
    h = torch.empty(shape, device=DEVICE, requires_grad=True)
    v = torch.ones(shape[-1], device=DEVICE, requires_grad=True)
    got = fused.shift(h, v)
    assert got.shape == shape
    dh, dv = torch.autograd.grad(got.sum(), (h, v))
    assert dh.shape == shape
    assert torch.equal(dv, torch.zeros_like(dv))


@pytest.mark.parametrize("flags", FLAGS)
def test_fp64_gradients(flags):
    torch.manual_seed(0)
    h, v = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    gate, rows = torch.rand(2, 3, 1, dtype=torch.float64), torch.tensor([[True, True, False], [True, False, True]])
    given = [x.to(DEVICE).requires_grad_() for x in (h, v, gate)]
    for way in WAYS.values():
        assert torch.autograd.gradcheck(lambda *g, way=way: way(*g, rows.to(DEVICE), scale=1.3, **flags), given)


@pytest.mark.parametrize("flags", [FLAGS[0], FLAGS[4], FLAGS[7]])
def test_the_operator_is_a_good_citizen(flags):
    h = torch.randn(2, 3, 16, device=DEVICE, requires_grad=True)
    v, gate = torch.randn(16, device=DEVICE, requires_grad=True), torch.rand(2, 3, 1, device=DEVICE, requires_grad=True)
    how = (h, v, gate, torch.rand(2, 3, device=DEVICE) > 0.5, 0.5, *flags.values())
    torch.library.opcheck(fused.operator, how)
    torch.library.opcheck(fused.operator_, (h.detach().clone(), v.detach(), None, None, *how[4:]))


def test_compiled_code_keeps_the_operator_whole():
    h, v = torch.randn(2, 3, 16, device=DEVICE), torch.randn(16, device=DEVICE, requires_grad=True)
    step = torch.compile(lambda x: fused.shift(x * 2, v, keep_norm=True) * 3, fullgraph=True, backend="aot_eager")
    got = step(h)
    want = truth(h * 2, v, None, None, 1.0, True, False, False) * 3
    check(got.detach(), want.detach())
    check(torch.autograd.grad(got.sum(), v)[0], torch.autograd.grad(want.sum(), v)[0])


def test_twice_the_same_is_the_same():
    h, v = torch.randn(2, 50, 33, device=DEVICE), torch.randn(33, device=DEVICE, requires_grad=True)
    first, second = (torch.autograd.grad(fused.shift(h, v, keep_norm=True).square().sum(), v)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_it_compiles_for_a_gpu():
    jobs = []
    for dtype, on in itertools.product(("bf16", "fp32"), (False, True)):
        constants = {
            "HAS_GATE": on, "HAS_ROWS": on, "PER_HEAD": False, "KEEP_NORM": on, "RELATIVE": on, "COSINE": on,
            "EPS": 1e-6, "COSINE_EPS": 1e-8, "LOOP": 4, "BLOCK_R": 1, "BLOCK_D": 4096,
        }  # fmt: skip
        pointers = {"h": f"*{dtype}", "v": "*fp32", "gate": "*fp32", "rows": "*u8", "out": f"*{dtype}", "scale": "fp32"}
        jobs.append(
            job(
                "shift",
                "shift_kernel",
                {**numbers(fused.shift_kernel, {**pointers, **constants}), **pointers},
                constants,
            )
        )
        del constants["PER_HEAD"], constants["LOOP"]
        constants |= {"WANTS_H": True, "WANTS_V": True, "WANTS_GATE": on}
        pointers |= {"grad": f"*{dtype}", "dh": f"*{dtype}", "dv": "*fp32", "dgate": "*fp32"}
        del pointers["out"]
        kernel = fused_backward().shift_backward_kernel
        jobs.append(
            job(
                "shift_backward",
                "shift_backward_kernel",
                {**numbers(kernel, {**pointers, **constants}), **pointers},
                constants,
            )
        )
    for made in compiles(*jobs):
        assert made["local"] == 0, made


def numbers(kernel, named):
    return {name: "i32" for name in kernel.arg_names if name not in named}


def fused_backward():
    from steer_kernels.fused import shift_backward

    return shift_backward
