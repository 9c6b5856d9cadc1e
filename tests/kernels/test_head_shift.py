"""`head_shift` in torch and in Triton against K3 in fp64, a head at a time, and its gradients."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings

import steer_kernels
from steer_kernels.fused import head_shift as fused
from tests.kernels.heads import (
    DIMS,
    DTYPES,
    LAYOUTS,
    exact,
    head_tensor,
    of_head,
    problem_from,
    sigmoid,
    sizes,
    some_rows,
)
from tests.kernels.settings import DEVICE, check, peak, poison

WAYS = {"torch": steer_kernels.head_shift.reference, "triton": fused.head_shift}
EXAMPLES = 40  # nearly every one compiles kernels of its own on a GPU
BOTH = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def truth(o, q, w, b, v, lse, rows, scale=1.0, layer_norm=False, heads=None):
    """y_h = o_h + m s g_h v_h for the heads that move, differentiable."""
    places = list(range(o.shape[-2])) if heads is None else heads.tolist()
    moved = []
    for head in range(o.shape[-2]):
        y = o[..., head, :]
        if head in places:
            place = places.index(head)
            seen = None if lse is None else lse[..., head]
            g = sigmoid(q[..., head, :], of_head(w, place), of_head(b, place), seen, layer_norm)
            step = y + scale * g * of_head(v, place)
            y = step if rows is None else torch.where(rows[..., None], step, y)
        moved.append(y)
    return torch.stack(moved, -2)


def some_problem(choice, generator):
    """Tensors to differentiate (o, q, w, b, v, lse), rows, and the other arguments."""
    batch, time, count = sizes(choice)
    dim, dim_v = choice(DIMS), choice(DIMS)
    dtype = choice(DTYPES)
    o = head_tensor(generator, choice(LAYOUTS), batch, time, count, dim_v, dtype)
    q = head_tensor(generator, choice(LAYOUTS), batch, time, count, dim, dtype)
    heads, n = None, count
    if choice((True, False)):
        n = choice((max(1, count // 2), count))
        heads = torch.randperm(count, generator=generator)[:n].sort().values.to(DEVICE)
    each = [choice((1, n)) for _ in range(3)]
    w, v = (torch.randn(k, d, generator=generator) for k, d in ((each[0], dim), (each[1], dim_v)))
    b = torch.randn(each[2], generator=generator)
    lse = head_tensor(generator, choice(LAYOUTS), batch, time, count, 1)[..., 0]
    rows = some_rows(choice, generator, batch, time)
    tensors = [o, q, *(x.to(DEVICE) for x in (w / dim**0.5, b, v)), lse if choice((True, False)) else None]
    if choice((True, False)):
        # a tower that folds the batch into the sequence
        tensors = [x[0] if x is not None and i in (0, 1, 5) else x for i, x in enumerate(tensors)]
        rows = rows if rows is None else rows[0]
    flags = {"scale": choice((1.0, -0.7)), "layer_norm": choice((True, False)), "heads": heads}
    return tensors, rows, flags


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
        given_ = [x for x in tensors if x is not None]
        found = torch.autograd.grad(got, given_, grad)
    leaves = exact(tensors)
    want = truth(*leaves, rows, **flags)
    assert got.dtype == tensors[0].dtype
    assert got.data_ptr() != tensors[0].data_ptr()
    check(got.detach(), want.detach())
    wanted = torch.autograd.grad(want, [x for x in leaves if x is not None], grad.double(), materialize_grads=True)
    for x, mine, theirs in zip(given_, found, wanted, strict=True):
        assert mine.dtype == x.dtype
        check(mine, theirs, size=peak(grad))
    if rows is not None:
        assert torch.equal(got[~rows], tensors[0][~rows])


def plain(time=5, heads=3, dim=16, dim_v=8, batch=2, dtype=torch.float32, seed=0):
    """A small problem: o, q, w, b, v, lse."""
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, time, heads, dim_v), (batch, time, heads, dim), (heads, dim), (heads,), (heads, dim_v)
    return [torch.randn(s, generator=g).to(dtype).to(DEVICE) for s in (*shapes, (batch, time, heads))]


@BOTH
@pytest.mark.parametrize("layer_norm", [False, True])
def test_gates_that_are_open_or_shut(way, layer_norm):
    o, q, w, b, v, lse = plain()
    lse[0, 0], lse[0, 1] = -math.inf, math.inf  # a row that sees nothing; a gate that is shut
    b[2] = 200.0
    q[1, 4] *= 1e4
    given_ = [x.requires_grad_() for x in (o, q, w, b, v, lse)]
    y = way(*given_, layer_norm=layer_norm)
    assert torch.equal(y[0, 0], o[0, 0] + v)
    assert torch.equal(y[0, 1], o[0, 1])
    assert torch.equal(y[1, :4, 2], (o + v)[1, :4, 2])
    do, dq, _dw, db, dv, dlse = grads = torch.autograd.grad(y.sum(), given_)
    assert all(g.isfinite().all() for g in grads)
    assert not dq[0, :2].any()
    assert not dlse[0, :2].any()
    assert not db[2].any()
    assert torch.equal(do, torch.ones_like(o))
    check(dv.detach(), (y - o).detach().double().sum((0, 1)) / v.detach())


@BOTH
@pytest.mark.parametrize("layer_norm", [False, True])
def test_what_is_left_out_may_hold_anything(way, layer_norm):
    o, q, w, b, v, lse = plain()
    rows = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]], device=DEVICE)
    heads = torch.tensor([0, 2], device=DEVICE)
    w, b, v = w[heads], b[heads], v[heads]

    def run():
        leaves = [x.detach().clone().requires_grad_() for x in (o, q, w, b, v, lse)]
        y = way(*leaves, rows, layer_norm=layer_norm, heads=heads)
        return y.detach(), torch.autograd.grad(y.sum(), leaves)

    clean, grads = run()
    for bad in (math.nan, math.inf):
        q[~rows], lse[~rows], q[:, :, 1], lse[:, :, 1] = bad, bad, bad, bad
        dirty, spoilt = run()
        assert torch.equal(clean, dirty)
        assert all(torch.equal(a, c) for a, c in zip(grads, spoilt, strict=True))
    assert not spoilt[1][~rows].any()
    assert not spoilt[1][:, :, 1].any()


@BOTH
@pytest.mark.parametrize("where", ["q", "lse", "o"])
def test_nan_spoils_one_head_of_one_row(way, where):
    names = dict(zip(("o", "q", "w", "b", "v", "lse"), plain(), strict=True))
    clean = way(**names)
    names[where][1, 2, 0] = math.nan
    got = way(**names)
    assert got[1, 2, 0].isnan().all()
    got[1, 2, 0] = clean[1, 2, 0]
    assert torch.equal(got, clean)


@BOTH
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_to_move(way, shape):
    o, q = torch.randn(*shape, 8, device=DEVICE), torch.randn(*shape, 16, device=DEVICE)
    params = [torch.randn(shape[2] or 1, *s, device=DEVICE, requires_grad=True) for s in ((16,), (), (8,))]
    y = way(o, q, *params)
    assert y.shape == o.shape
    assert all(not g.any() for g in torch.autograd.grad(y.sum(), params))


@BOTH
def test_no_heads(way):
    o, q, *_rest = plain()
    none = [torch.zeros(0, *s, device=DEVICE) for s in ((16,), (), (8,))]
    y = way(o, q, *none, heads=torch.zeros(0, dtype=torch.int64, device=DEVICE))
    assert torch.equal(y, o)
    assert y.data_ptr() != o.data_ptr()


@BOTH
def test_more_dimensions_and_the_layout_of_o(way):
    o, q, w, b, v, lse = plain(batch=6)
    want = way(o, q, w, b, v, lse)
    swapped = [x.unflatten(0, (2, 3)).transpose(0, 1) for x in (o, q, lse)]
    many = way(*swapped[:2], w, b, v, swapped[2])
    assert torch.equal(many.transpose(0, 1).flatten(0, 1), want)
    turned = o.transpose(1, 2).contiguous().transpose(1, 2)
    assert way(turned, q, w, b, v, lse).stride() == turned.stride()
    assert torch.equal(way(turned, q, w, b, v, lse), want)


def test_pieces_agree_with_the_whole(monkeypatch):
    o, q, w, b, v, lse = plain(time=13)
    rows = torch.rand(1, 13, device=DEVICE) > 0.3
    whole = steer_kernels.head_shift.reference(o, q, w, b, v, lse, rows)
    monkeypatch.setattr(sys.modules["steer_kernels._pieces"], "CHUNK", 37)
    assert torch.equal(steer_kernels.head_shift.reference(o, q, w, b, v, lse, rows), whole)


@BOTH
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("heads", [None, [0, 2]])
def test_fp64_gradients(way, layer_norm, heads):
    o, q, w, b, v, lse = plain(time=3, dim=4, dim_v=3, dtype=torch.float64)
    rows = torch.tensor([[True, False, True], [True, True, False]], device=DEVICE)
    heads = heads if heads is None else torch.tensor(heads, device=DEVICE)
    if heads is not None:
        w, b, v = w[heads], b[:1], v[heads]
    given_ = [x.requires_grad_() for x in (o, q, w, b, v, lse)]
    assert torch.autograd.gradcheck(lambda *x: way(*x, rows, scale=1.3, layer_norm=layer_norm, heads=heads), given_)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 3), (4,), (0, 1, 2, 3, 4, 5)])
def test_only_what_is_wanted(wanted):
    tensors = plain()
    rows = torch.rand(2, 5, device=DEVICE) > 0.3
    asked = [tensors[i].requires_grad_() for i in wanted]
    found = torch.autograd.grad(fused.head_shift(*tensors, rows, layer_norm=True).square().sum(), asked)
    leaves = exact(tensors)
    want = torch.autograd.grad(truth(*leaves, rows, layer_norm=True).square().sum(), [leaves[i] for i in wanted])
    for mine, theirs in zip(found, want, strict=True):
        check(mine, theirs)


@pytest.mark.parametrize("full", [False, True])
def test_the_operator_is_a_good_citizen(full):
    o, q, w, b, v, lse = (x.requires_grad_() for x in plain())
    heads = torch.tensor([0, 2], device=DEVICE)
    rows = torch.rand(2, 5, device=DEVICE) > 0.5
    call = (o, q, w, b, v, None, None, None, 1.0, False)
    if full:
        turned = q.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        subset = (x.detach()[heads].requires_grad_() for x in (w, b, v))
        call = (o, turned, *subset, lse, rows, heads, 0.5, True)
    torch.library.opcheck(fused.operator, call)
    wanted = [True, full, True, False, full]
    with torch.no_grad():
        torch.library.opcheck(fused.backward_operator, (torch.randn_like(o), *call[1:], wanted))


def test_compiled_code_keeps_the_operator_whole():
    o, q, w, b, v, lse = plain()
    w.requires_grad_()
    step = torch.compile(lambda x: fused.head_shift(x * 2, q, w, b, v, lse) * 3, fullgraph=True, backend="aot_eager")
    want = truth(o.double() * 2, *(x.double() for x in (q, w, b, v, lse)), None) * 3
    got = step(o)
    check(got.detach(), want.detach())
    check(torch.autograd.grad(got.sum(), w)[0], torch.autograd.grad(want.sum(), w)[0])


def test_twice_the_same_is_the_same():
    tensors = [x.requires_grad_() for x in plain(time=150)]

    def grads():
        return torch.autograd.grad(fused.head_shift(*tensors, layer_norm=True).square().sum(), tensors)

    assert all(torch.equal(a, c) for a, c in zip(grads(), grads(), strict=True))


@BOTH
@pytest.mark.parametrize(
    "change, says",
    [
        ({"q": torch.zeros(2, 5, 2, 16)}, "(2, 5, 2, 16)"),
        ({"w": torch.zeros(2, 16)}, "(2, 16)"),
        ({"b": torch.zeros(3, 1)}, "(3, 1)"),
        ({"v": torch.zeros(3, 16)}, "(3, 16)"),
        ({"lse": torch.zeros(2, 3, 5)}, "(2, 3, 5)"),
        ({"rows": torch.zeros(2, 5)}, "float32"),
        ({"rows": torch.zeros(2, 4, dtype=torch.bool)}, "(2, 4)"),
        ({"heads": torch.tensor([0, 1])}, "(2, 16)"),
        ({"heads": torch.tensor([True, False, True])}, "bool"),
    ],
)
def test_wrong_calls_say_what_was_given(way, change, says):
    call = dict(zip(("o", "q", "w", "b", "v", "lse"), plain(), strict=True))
    with pytest.raises(ValueError) as caught:
        way(**{**call, **{name: x.to(DEVICE) for name, x in change.items()}})
    assert says in str(caught.value)


def test_it_is_dispatched():
    assert steer_kernels.best("head_shift", "cpu") is WAYS["torch"]
    assert steer_kernels.best("head_shift", "cuda") is fused.head_shift
    assert torch.equal(steer_kernels.head_shift(*plain()), WAYS["triton" if DEVICE == "cuda" else "torch"](*plain()))
