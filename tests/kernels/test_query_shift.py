"""`query_shift` in torch and in Triton against K4 in fp64, a head at a time, and its gradients."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings

import steer_kernels
from steer_kernels.fused import query_shift as fused
from tests.kernels.heads import DTYPES, LAYOUTS, exact, head_tensor, of_head, problem_from, sigmoid, sizes, some_rows
from tests.kernels.settings import DEVICE, check, peak, poison

WAYS = {"torch": steer_kernels.query_shift.reference, "triton": fused.query_shift}
EXAMPLES = 40  # nearly every one compiles kernels of its own on a GPU
BOTH = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
NAMES = ("q", "u_q", "u_k", "w", "b", "gate", "lse")
DIMS = (2, 6, 16, 20, 80)
# On a GPU half queries are multiplied in tf32, ten bits for the other factor.
LOOSE = 2e-3


def rotate(x, cos, sin):
    """RoPE as its matrix: column j of the first half turns with column j of the second; x (..., T, d) of one head."""
    size = cos.shape[-1]
    turned = []
    for j in range(x.shape[-1]):
        if j < size // 2:
            turned.append(x[..., j] * cos[..., j] - x[..., j + size // 2] * sin[..., j])
        elif j < size:
            turned.append(x[..., j] * cos[..., j] + x[..., j - size // 2] * sin[..., j])
        else:
            turned.append(x[..., j])
    return torch.stack(turned, -1)


def truth(q, u_q, u_k, w, b, gate, lse, rows, layer_norm=False, cos=None, sin=None):
    """y = x + m g sqrt(d / r) (x U_q) U_k^T, differentiable."""
    moved = []
    for head in range(q.shape[-2]):
        x = q[..., head, :]
        if cos is not None:
            x = rotate(x, cos.double(), sin.double())
        g = torch.ones((), dtype=torch.float64, device=q.device)
        if w is not None:
            bias = 0 if b is None else of_head(b, head)
            g = sigmoid(x, of_head(w, head), bias, None if lse is None else lse[..., head], layer_norm)
        if gate is not None:
            g = gate.expand(*q.shape[:-1], 1)[..., head, :]
        low, up = of_head(u_q, head), of_head(u_k, head)
        y = x + g * math.sqrt(q.shape[-1] / low.shape[-1]) * (x @ low @ up.T)
        moved.append(y if rows is None else torch.where(rows[..., None], y, x))
    return torch.stack(moved, -2)


def some_problem(choice, generator):
    """Tensors to differentiate (q, u_q, u_k, w, b, gate, lse), rows, and the other arguments."""
    batch, time, count = sizes(choice)
    dim, rank, dtype = choice(DIMS), choice((1, 3, 4, 16)), choice(DTYPES)
    q = head_tensor(generator, choice(LAYOUTS), batch, time, count, dim, dtype)
    each = [choice((1, count)) for _ in range(4)]
    # A change as large as the query itself.
    u_q = torch.randn(each[0], dim, rank, generator=generator) / dim**0.5
    u_k = torch.randn(each[1], dim, rank, generator=generator) / dim**0.5
    if choice((True, False)):
        u_q = u_q.mT.contiguous().mT
    w = b = gate = lse = None
    kind = choice(("w", "w and all", "gate", None))
    if kind in ("w", "w and all"):
        w = torch.randn(each[2], dim, generator=generator) / dim**0.5
    if kind == "w and all":
        b = torch.randn(each[3], generator=generator)
        lse = head_tensor(generator, choice(LAYOUTS), batch, time, count, 1)[..., 0]
    if kind == "gate":
        shape = choice(((batch, time, count, 1), (batch, 1, 1, 1), (count, 1), (1,)))
        gate = torch.randn(shape, generator=generator)
    cos = sin = None
    if choice((True, False)):
        size = choice([n for n in (2, 6, 16, 80) if n <= dim])
        cos, sin = torch.randn(2, choice((1, batch)), time, size, generator=generator).to(dtype)
        cos, sin = cos.to(DEVICE), sin.to(DEVICE)
    rows = some_rows(choice, generator, batch, time)
    tensors = [x if x is None else x.to(DEVICE) for x in (q, u_q, u_k, w, b, gate, lse)]
    return tensors, rows, {"layer_norm": choice((True, False)), "cos": cos, "sin": sin}


@BOTH
@settings(max_examples=EXAMPLES)
@given(problem=problem_from(some_problem))
def test_forward_and_backward(way, problem):
    tensors, rows, flags = problem
    tensors = [None if x is None else x.detach().requires_grad_() for x in tensors]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch)
        got = way(*tensors, rows, **flags)
        with torch.no_grad():
            assert torch.equal(way(*tensors, rows, **flags), got)
        grad = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(got)
        asked = [x for x in tensors if x is not None]
        found = torch.autograd.grad(got, asked, grad)
    leaves = exact(tensors)
    want = truth(*leaves, rows, **flags)
    assert got.dtype == tensors[0].dtype
    assert got.data_ptr() != tensors[0].data_ptr()
    check(got.detach(), want.detach())
    wanted = torch.autograd.grad(want, [x for x in leaves if x is not None], grad.double(), materialize_grads=True)
    for x, mine, theirs in zip(asked, found, wanted, strict=True):
        assert mine.dtype == x.dtype
        check(mine, theirs, 1e-5 if got.dtype == torch.float32 or DEVICE == "cpu" else LOOSE, size=peak(grad))
    if rows is not None and flags["cos"] is None:
        assert torch.equal(got[~rows], tensors[0][~rows])


def plain(time=5, heads=3, dim=16, rank=4, batch=2, dtype=torch.float32, turned=6, seed=0):
    """A small problem as keyword arguments, gated by w and rotated."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "q": (batch, time, heads, dim), "u_q": (heads, dim, rank), "u_k": (heads, dim, rank), "w": (heads, dim),
        "b": (heads,), "lse": (batch, time, heads), "cos": (1, time, turned), "sin": (1, time, turned),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=g).to(dtype).to(DEVICE) for name, shape in shapes.items()}


def leaves_of(call):
    """The same call with what can be differentiated as leaves, and those."""
    call = {name: x.detach().clone().requires_grad_(name in NAMES) for name, x in call.items()}
    return call, [x for x in call.values() if x.requires_grad]


@BOTH
def test_rotation_is_transformers_own(way):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    call = plain(turned=16)
    call["u_k"] = torch.zeros_like(call["u_k"])
    turned, _ = apply_rotary_pos_emb(call["q"], call["q"], call["cos"], call["sin"], unsqueeze_dim=2)
    check(way(**call), turned.double())


@BOTH
def test_it_is_a_term_in_the_scores(way):
    call = plain(rank=16)
    q, u_q, u_k = call["q"], call["u_q"], call["u_k"]
    keys = torch.randn(2, 7, 3, 16, device=DEVICE)
    scores = torch.einsum("bthd,bshd->bhts", way(q, u_q, u_k), keys) / 4
    low, up = torch.einsum("bthd,hdr->bthr", q, u_q), torch.einsum("bshd,hdr->bshr", keys, u_k)
    want = torch.einsum("bthd,bshd->bhts", q.double(), keys.double()) / 4
    want += torch.einsum("bthr,bshr->bhts", low.double(), up.double()) / 4
    check(scores, want)


@BOTH
def test_the_identity(way):
    call = plain(dtype=torch.bfloat16)
    q = call["q"].transpose(1, 2).contiguous().transpose(1, 2)
    y = way(q, call["u_q"].float(), torch.zeros_like(call["u_k"]).float(), call["w"].float(), layer_norm=True)
    assert torch.equal(y, q)
    assert y.stride() == q.stride()
    assert y.data_ptr() != q.data_ptr()


@BOTH
@pytest.mark.parametrize("layer_norm", [False, True])
def test_gates_that_are_open_or_shut(way, layer_norm):
    call = plain()
    call["lse"][0, 0], call["lse"][0, 1] = -math.inf, math.inf
    call, asked = leaves_of(call)
    y = way(**call, layer_norm=layer_norm)
    whole = way(**{name: x for name, x in call.items() if name not in ("w", "b", "lse")})
    check(y[0, 0].detach(), whole[0, 0].detach().double())
    still = way(**{**call, "u_k": torch.zeros_like(call["u_k"])})
    assert torch.equal(y[0, 1], still[0, 1])
    grads = dict(zip([n for n in call if n in NAMES], torch.autograd.grad(y.sum(), asked), strict=True))
    assert all(g.isfinite().all() for g in grads.values())
    assert not grads["lse"][0, :2].any()
    assert grads["lse"][0, 2:].all()


@BOTH
@pytest.mark.parametrize("by", ["w", "gate"])
def test_what_is_left_out_may_hold_anything(way, by):
    call = plain()
    rows = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]], device=DEVICE)
    if by == "gate":
        call = {name: x for name, x in call.items() if name not in ("w", "b", "lse")}
        call["gate"] = torch.rand(2, 5, 3, 1, device=DEVICE)
    del call["cos"], call["sin"]

    def run():
        given_, asked = leaves_of(call)
        y = way(**given_, rows=rows, layer_norm=True)
        return y.detach(), torch.autograd.grad(y.sum(), asked)

    clean, grads = run()
    for bad in (math.nan, math.inf):
        call["q"][~rows] = bad
        for name in ("gate", "lse"):
            if name in call:
                call[name][~rows] = bad
        dirty, spoilt = run()
        assert torch.equal(clean[rows], dirty[rows])
        assert torch.equal(dirty[~rows].nan_to_num(7.0), call["q"][~rows].nan_to_num(7.0))
        assert all(torch.equal(a, c) for a, c in zip(grads, spoilt, strict=True))


@BOTH
@pytest.mark.parametrize("where", ["q", "lse", "gate"])
def test_nan_spoils_one_head_of_one_row(way, where):
    call = plain()
    if where == "gate":
        call = {name: x for name, x in call.items() if name not in ("w", "b", "lse")}
        call["gate"] = torch.rand(2, 5, 3, 1, device=DEVICE)
    clean = way(**call)
    call[where][1, 2, 0] = math.nan
    got = way(**call)
    assert got[1, 2, 0].isnan().all()
    got[1, 2, 0] = clean[1, 2, 0]
    assert torch.equal(got, clean)


@BOTH
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_to_move(way, shape):
    q = torch.randn(*shape, 16, device=DEVICE)
    u_q, u_k, w = (torch.randn(shape[2], 16, *last, device=DEVICE, requires_grad=True) for last in ((4,), (4,), ()))
    y = way(q, u_q, u_k, w)
    assert y.shape == q.shape
    assert all(not g.any() for g in torch.autograd.grad(y.sum(), (u_q, u_k, w)))


@BOTH
def test_more_and_fewer_dimensions(way):
    call = plain(batch=6)
    cos, sin = call.pop("cos"), call.pop("sin")
    want = way(**call, cos=cos, sin=sin)
    lead = {name: call.pop(name) for name in ("q", "lse")}
    swapped = {name: x.unflatten(0, (2, 3)).transpose(0, 1) for name, x in lead.items()}
    many = way(**call, **swapped, cos=cos, sin=sin)
    check(many.transpose(0, 1).flatten(0, 1), want.double())
    one = way(**call, **{name: x[4] for name, x in lead.items()}, cos=cos[0], sin=sin[0])
    check(one, want[4].double())


@pytest.mark.parametrize("by", ["w", "gate"])
def test_pieces_agree_with_the_whole(monkeypatch, by):
    call = {**plain(time=13), "rows": torch.rand(1, 13, device=DEVICE) > 0.3}
    if by == "gate":
        call = {name: x for name, x in call.items() if name not in ("w", "b", "lse")}
        call["gate"] = torch.rand(2, 1, 1, 1, device=DEVICE)
    whole = steer_kernels.query_shift.reference(**call)
    monkeypatch.setattr(sys.modules["steer_kernels._pieces"], "CHUNK", 60)
    torch.testing.assert_close(steer_kernels.query_shift.reference(**call), whole, rtol=1e-6, atol=1e-6)


@BOTH
@pytest.mark.parametrize("layer_norm", [False, True])
def test_fp64_gradients(way, layer_norm):
    call, asked = leaves_of(plain(time=3, dim=6, rank=2, turned=4, dtype=torch.float64))
    rows = torch.tensor([[True, False, True], [True, True, False]], device=DEVICE)
    names = [name for name in call if name in NAMES]

    def moved(*given_):
        return way(**{**call, **dict(zip(names, given_, strict=True))}, rows=rows, layer_norm=layer_norm)

    assert torch.autograd.gradcheck(moved, asked)


@pytest.mark.parametrize("wanted", [("q",), ("u_q",), ("u_k",), ("w", "b"), ("lse",), NAMES])
def test_only_what_is_wanted(wanted):
    call = plain()
    rows = torch.rand(2, 5, device=DEVICE) > 0.3
    asked = [call[name].requires_grad_() for name in wanted if name in call]
    found = torch.autograd.grad(fused.query_shift(**call, rows=rows, layer_norm=True).square().sum(), asked)
    leaves = dict(zip(NAMES, exact([call.get(name) for name in NAMES]), strict=True))
    want = truth(**leaves, rows=rows, layer_norm=True, cos=call["cos"], sin=call["sin"]).square().sum()
    for mine, theirs in zip(found, torch.autograd.grad(want, [leaves[n] for n in wanted if n in call]), strict=True):
        check(mine, theirs)


@pytest.mark.parametrize("full", [False, True])
def test_the_operator_is_a_good_citizen(full):
    call, _ = leaves_of(plain())
    if full:
        turned = call["q"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        rows = torch.rand(2, 5, device=DEVICE) > 0.5
        given_ = (turned, call["u_q"], call["u_k"], call["w"], call["b"], None, call["lse"], rows, call["cos"])
        given_ = (*given_, call["sin"], True)
    else:
        gate = torch.rand(2, 1, 1, 1, device=DEVICE, requires_grad=True)
        given_ = (call["q"], call["u_q"], call["u_k"], None, None, gate, None, None, None, None, False)
    torch.library.opcheck(fused.operator, given_)
    wanted = [True, True, False, full, full, not full, full]
    with torch.no_grad():
        torch.library.opcheck(fused.backward_operator, (torch.randn_like(call["q"]), *given_, wanted))


def test_compiled_code_keeps_the_operator_whole():
    call = plain()
    q, u_q = call.pop("q"), call["u_q"].requires_grad_()
    step = torch.compile(lambda x: fused.query_shift(x * 2, **call) * 3, fullgraph=True, backend="aot_eager")
    others = [call[name].double() if name in call else None for name in NAMES[1:]]
    want = 3 * truth(q.double() * 2, *others, None, cos=call["cos"], sin=call["sin"])
    got = step(q)
    check(got.detach(), want.detach())
    check(torch.autograd.grad(got.sum(), u_q)[0], torch.autograd.grad(want.sum(), u_q)[0])


def test_heads_too_wide_for_a_tile_take_the_torch_path():
    call, asked = leaves_of(plain(dim=260))
    y = fused.query_shift(**call)
    again, others = leaves_of(call)
    want = WAYS["torch"](**again)
    assert torch.equal(y, want)
    found = torch.autograd.grad(y.sum(), asked), torch.autograd.grad(want.sum(), others)
    assert all(torch.equal(a, c) for a, c in zip(*found, strict=True))


def test_twice_the_same_is_the_same():
    call, asked = leaves_of(plain(time=150))

    def grads():
        return torch.autograd.grad(fused.query_shift(**call, layer_norm=True).square().sum(), asked)

    assert all(torch.equal(a, c) for a, c in zip(grads(), grads(), strict=True))


@BOTH
@pytest.mark.parametrize(
    "change, says",
    [
        ({"u_q": torch.zeros(2, 16, 4)}, "(2, 16, 4)"),
        ({"u_k": torch.zeros(3, 16, 5)}, "(3, 16, 5)"),
        ({"u_q": torch.zeros(3, 16, 17), "u_k": torch.zeros(3, 16, 17)}, "16"),
        ({"w": torch.zeros(16)}, "(16,)"),
        ({"b": torch.zeros(2)}, "(2,)"),
        ({"gate": torch.zeros(2, 5, 3, 1)}, "both"),
        ({"w": None, "b": None, "lse": None, "gate": torch.zeros(2, 5, 3)}, "(2, 5, 3)"),
        ({"w": None, "b": None}, "lse"),
        ({"lse": torch.zeros(2, 3, 5)}, "(2, 3, 5)"),
        ({"rows": torch.zeros(2, 5, 1, dtype=torch.bool)}, "(2, 5, 1)"),
        ({"sin": None}, "cos"),
        ({"cos": torch.zeros(1, 4, 6), "sin": torch.zeros(1, 4, 6)}, "(1, 4, 6)"),
        ({"cos": torch.zeros(1, 5, 18), "sin": torch.zeros(1, 5, 18)}, "18"),
        ({"cos": torch.zeros(1, 5, 5), "sin": torch.zeros(1, 5, 5)}, "even"),
    ],
)
def test_wrong_calls_say_what_was_given(way, change, says):
    with pytest.raises(ValueError) as caught:
        way(**{**plain(), **{name: x if x is None else x.to(DEVICE) for name, x in change.items()}})
    assert says in str(caught.value)


def test_it_is_dispatched():
    assert steer_kernels.best("query_shift", "cpu") is WAYS["torch"]
    assert steer_kernels.best("query_shift", "cuda") is fused.query_shift
    call = plain()
    q = call.pop("q")
    assert torch.equal(steer_kernels.query_shift(q, **call), WAYS["triton" if DEVICE == "cuda" else "torch"](q, **call))
