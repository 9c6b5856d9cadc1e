"""Every op and gate against its equation in fp64, with all parameter shapes and row masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steer import gates, ops
from steer._params import Slot
from steer.errors import InterventionError
from steer.gates import Reading

from .helpers import randn

B, T, H, D, LAYERS = 2, 5, 4, 6, 3

ROWS = st.one_of(st.none(), st.lists(st.booleans(), min_size=B * T, max_size=B * T))
SEEDS = st.integers(0, 2**16)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def width_slot(place: int = 0) -> Slot:
    return Slot("resid_out text layer 0", place, LAYERS, None, D)


def head_slot(place: int = 0) -> Slot:
    return Slot("head_out text layer 0", place, LAYERS, H, D)


def mask_of(rows: list[bool] | None) -> torch.Tensor | None:
    return None if rows is None else torch.tensor(rows).view(B, T)


def expect(y: torch.Tensor, truth: torch.Tensor, x: torch.Tensor, rows: torch.Tensor | None) -> None:
    """y equals the fp64 truth at chosen rows, to its dtype, and x bit for bit elsewhere."""
    assert y.dtype == x.dtype
    if rows is not None:
        assert torch.equal(y[~rows], x[~rows])
        y, truth = y[rows], truth[rows]
    tolerance = TOLERANCE[x.dtype]
    torch.testing.assert_close(y.double(), truth.double(), rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, seed=SEEDS, dtype=DTYPES, keep=st.booleans(), relative=st.booleans(), layered=st.booleans())
def test_add_is_its_equation(rows, seed, dtype, keep, relative, layered) -> None:
    x = randn(B, T, D, seed=seed).to(dtype)
    vector, scale = randn(LAYERS, D, seed=seed + 1), randn(LAYERS, seed=seed + 2)
    op = ops.Add(vector if layered else vector[1], scale if layered else float(scale[1]), keep, relative)
    y = op.bind(width_slot(1), None)(x, Reading(), mask_of(rows))
    h = x.double()
    step = scale[1].double() * vector[1].double() * (h.norm(dim=-1, keepdim=True) if relative else 1)
    truth = h + step
    if keep:
        truth = truth * h.norm(dim=-1, keepdim=True) / truth.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    expect(y, truth, x, mask_of(rows))


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, seed=SEEDS, dtype=DTYPES, norm=st.booleans(), with_lse=st.booleans())
def test_gated_head_shift_is_k3(rows, seed, dtype, norm, with_lse) -> None:
    o, q = randn(B, T, H, D, seed=seed).to(dtype), randn(B, T, H, D, seed=seed + 1).to(dtype)
    v, w, b = randn(LAYERS, H, D, seed=seed + 2), randn(LAYERS, H, D, seed=seed + 3), randn(LAYERS, H, seed=seed + 4)
    lse = randn(B, T, H, seed=seed + 5) if with_lse else None
    slot = head_slot(2)
    gate = gates.Sigmoid(w, b, layer_norm=norm, minus_lse=with_lse)
    y = ops.Add(v, 0.5).bind(slot, gate.bind(slot))(o, Reading(q, lse), mask_of(rows))
    f = q.double()
    if norm:
        f = (f - f.mean(-1, keepdim=True)) / (f.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    score = torch.einsum("bthd,hd->bth", f, w[2].double()) + b[2].double() - (lse.double() if with_lse else 0)
    truth = o.double() + 0.5 * torch.sigmoid(score)[..., None] * v[2].double()
    expect(y, truth, o, mask_of(rows))


@settings(deadline=None, max_examples=40)
@given(rows=ROWS, seed=SEEDS, dtype=DTYPES, rank=st.integers(1, 5), gated=st.booleans())
def test_low_rank_query_is_k4(rows, seed, dtype, rank, gated) -> None:
    q = randn(B, T, H, D, seed=seed).to(dtype)
    u_q, u_k = randn(LAYERS, H, D, rank, seed=seed + 1, scale=0.3), randn(LAYERS, H, D, rank, seed=seed + 2, scale=0.3)
    w, b = randn(H, D, seed=seed + 3), randn(H, seed=seed + 4)
    slot = head_slot()
    gate = gates.Sigmoid(w, b, layer_norm=True) if gated else None
    y = ops.LowRankQuery(u_q, u_k).bind(slot, gate.bind(slot) if gate else None)(q, Reading(query=q), mask_of(rows))
    h = q.double()
    normed = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    g = torch.sigmoid((normed * w.double()).sum(-1) + b.double())[..., None] if gated else 1
    matrix = u_q[0].double() @ u_k[0].double().transpose(-1, -2)
    truth = h + g * (D / rank) ** 0.5 * torch.einsum("bthd,hde->bthe", h, matrix)
    expect(y, truth, q, mask_of(rows))


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, seed=SEEDS, dtype=DTYPES)
def test_cosine_gate_is_icv(rows, seed, dtype) -> None:
    x, v = randn(B, T, D, seed=seed).to(dtype), randn(D, seed=seed + 1)
    unit = v / v.norm()
    slot = width_slot()
    op = ops.Add(unit, 0.1, keep_norm=True, relative=True)
    y = op.bind(slot, gates.Cosine().bind(slot))(x, Reading(), mask_of(rows))
    h, d = x.double(), unit.double()
    length = h.norm(dim=-1, keepdim=True)
    cosine = (h * -d).sum(-1, keepdim=True) / length / d.norm()
    moved = h / length + 0.1 * (1 + torch.relu(cosine)) * d
    expect(y, moved / moved.norm(dim=-1, keepdim=True) * length, x, mask_of(rows))


@settings(deadline=None, max_examples=30)
@given(rows=ROWS, seed=SEEDS, angle=st.floats(-3, 3))
def test_rotation_keeps_length_and_turns_by_the_angle(rows, seed, angle) -> None:
    u, v = randn(D, seed=seed), randn(D, seed=seed + 1)
    x = randn(B, T, D, seed=seed + 2).double()
    y = ops.Rotate(u, v, angle).bind(width_slot(), None)(x, Reading(), mask_of(rows))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=1e-6)
    first = torch.nn.functional.normalize(u.double(), dim=0).expand(B, T, D)
    turned = ops.Rotate(u, v, angle).bind(width_slot(), None)(first, Reading(), None)
    cosine = torch.tensor(angle).double().cos().expand(B, T)
    torch.testing.assert_close((turned * first).sum(-1), cosine, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "op",
    [
        ops.Add(torch.zeros(D)),
        ops.Add(randn(D), 0.0, keep_norm=True),
        ops.Scale(1.0),
        ops.Rotate(randn(D), randn(D, seed=1), 0.0),
        ops.LowRankQuery(randn(H, D, 2), torch.zeros(H, D, 2)),
    ],
    ids=lambda op: type(op).__name__,
)
def test_learnable_ops_start_as_the_exact_identity(op, dtype) -> None:
    x = randn(B, T, H, D, scale=30).to(dtype)
    assert torch.equal(op.bind(head_slot(), None)(x, Reading(query=x), None), x)


def test_threshold_acts_row_by_row() -> None:
    direction = torch.tensor([1.0, 0, 0, 0, 0, 0])
    x = torch.stack([direction, -direction])[None] * 3
    slot = width_slot()
    op = ops.Add(torch.ones(D)).bind(slot, gates.Threshold(direction, above=0.5).bind(slot))
    y = op(x, Reading(), None)
    assert torch.equal(y[0, 0], x[0, 0] + 1)
    assert torch.equal(y[0, 1], x[0, 1])


def test_given_gate_follows_the_batch_through_beams() -> None:
    slot = width_slot()
    op = ops.Add(torch.ones(D)).bind(slot, gates.Given(torch.tensor([0.0, 2.0])).bind(slot))
    y = op(torch.zeros(4, T, D), Reading(), None)
    assert torch.equal(y[:, 0, 0], torch.tensor([0.0, 0.0, 2.0, 2.0]))


def test_a_given_gate_of_another_batch_is_refused() -> None:
    slot = width_slot()
    op = ops.Add(torch.ones(D)).bind(slot, gates.Given(torch.ones(2)).bind(slot))
    with pytest.raises(InterventionError, match="2 rows.*batch has 3"):
        op(torch.zeros(3, T, D), Reading(), None)


def test_whole_numbers_are_taken_as_the_numbers_they_are() -> None:
    x = torch.arange(T * D, dtype=torch.float32).view(1, T, D) / 7
    assert torch.equal(ops.Scale(torch.tensor(3)).bind(width_slot(), None)(x, Reading(), None), x * 3)


def test_parameters_train_through_ops_in_fp32_whatever_the_model() -> None:
    v = torch.zeros(LAYERS, H, D, requires_grad=True)
    w = torch.zeros(H, D, requires_grad=True)
    slot = head_slot(1)
    o = randn(B, T, H, D).bfloat16()
    y = ops.Add(v).bind(slot, gates.Sigmoid(w).bind(slot))(o, Reading(query=o), None)
    y.float().square().sum().backward()
    assert v.grad is not None
    assert v.grad.dtype == torch.float32
    assert v.grad[1].abs().sum() > 0
    assert v.grad[0].abs().sum() == 0
    torch.testing.assert_close(v.grad[1], o.float().sum((0, 1)), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("op", "facts"),
    [
        (ops.Add(torch.zeros(D + 1)), ["vector", f"[{D + 1}]", f"[{D}]", "resid_out"]),
        (ops.Add(torch.zeros(LAYERS + 1, D)), ["vector", f"[{LAYERS}, {D}]"]),
        (ops.Add(torch.zeros(D), torch.zeros(7)), ["scale", "[7]", f"[{LAYERS}]"]),
        (ops.Scale(torch.zeros(2, 2)), ["factor", "[2, 2]"]),
    ],
)
def test_wrong_shapes_name_the_parameter_what_came_and_what_fits(op, facts) -> None:
    with pytest.raises(InterventionError) as error:
        op.bind(width_slot(), None)
    for fact in facts:
        assert fact in str(error.value)
