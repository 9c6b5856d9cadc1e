"""Both implementations of `jsd`, any beta, forward and backward, against the definition in fp64."""

from __future__ import annotations

import importlib
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import steer_kernels
from steer_kernels import jsd
from steer_kernels.fused import _jsd_plan as plan_file
from steer_kernels.fused import find
from steer_kernels.fused import jsd_backward as backward_file
from tests.kernels.settings import DEVICE, EXAMPLES, check, poison

fused = find("jsd")
file = importlib.import_module("steer_kernels.fused.jsd")
BOTH = {"torch": jsd.reference, "triton": fused}
PLANS = ("row", "split", "group") if DEVICE == "cuda" else ("row", "split")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NOTHING = -math.inf


def truth(first, second, beta=0.5, temperature=1.0):
    """The definition in fp64, differentiable, from `log_softmax` and `logaddexp`."""
    log_p, log_q = ((x.double() / temperature).log_softmax(-1) for x in (first, second))
    if beta == 1:
        log_p, log_q = log_q, log_p
    if beta in (0, 1):
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    return (beta * log_p.exp() * (log_p - log_m) + (1 - beta) * log_q.exp() * (log_q - log_m)).sum(-1)


def with_gradients(function, first, second, grad):
    """The result and both gradients."""
    first, second = first.detach().clone().requires_grad_(), second.detach().clone().requires_grad_()
    out = function(first, second)
    return out.detach(), *torch.autograd.grad(out, (first, second), grad.to(out.dtype))


def logits(rows, size, noise=0.5, dtype=torch.float32, seed=0, spread=4.0):
    """Logits of a model's spread and a noisy copy."""
    base, more = torch.randn(2, rows, size, generator=torch.Generator().manual_seed(seed))
    return (spread * base).to(DEVICE, dtype), (spread * base + noise * more).to(DEVICE, dtype)


def layout(x, how):
    """The same numbers in other strides."""
    if how == "transposed":
        return x.t().contiguous().t()
    if how == "last rows":
        return torch.cat([torch.full_like(x, 7.0), x])[-x.shape[0] :]
    if how == "columns":
        return torch.stack([torch.full_like(x, 7.0), x], -1)[..., 1]
    if how == "offset":
        return torch.cat([torch.full_like(x[:, :1], 7.0), x, torch.full_like(x[:, :2], 7.0)], 1)[:, 1:-2]
    return x


@pytest.mark.parametrize("which", BOTH)
@settings(max_examples=EXAMPLES)
@given(
    rows=st.integers(0, 3),
    size=st.integers(1, 200),
    noise=st.sampled_from([1e-3, 0.1, 1.0, 20.0]),
    beta=st.sampled_from([0.5, 0.5, 0.1, 0.9, 0.0, 1.0]),
    temperature=st.sampled_from([1.0, 0.5, 2.5]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    how=st.sampled_from(["plain", "transposed", "last rows", "columns", "offset"]),
    seed=st.integers(0, 99),
)
def test_forward_and_backward_are_the_definition(which, rows, size, noise, beta, temperature, dtypes, how, seed):
    a, b = logits(rows, size, noise, seed=seed)
    a, b = layout(a.to(dtypes[0]), how), layout(b.to(dtypes[1]), how)
    grad = torch.randn(rows, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    got = with_gradients(lambda x, y: BOTH[which](x, y, beta=beta, temperature=temperature), a, b, grad)
    want = with_gradients(lambda x, y: truth(x, y, beta, temperature), a.double(), b.double(), grad)
    assert got[0].dtype == torch.float32
    # 1e-12: what an error of 1e-6 in a normaliser comes to, squared. It matters where no two tokens differ.
    torch.testing.assert_close(got[0].double(), want[0], rtol=2e-5, atol=1e-12)
    for i in (1, 2):
        # 2e-7 at the least: a gradient is a mass of up to 1 times the difference of two logarithms.
        check(got[i], want[i], 2e-5, size=1e-2)
    if dtypes[0] == dtypes[1]:
        alone = BOTH[which](a.contiguous(), b.contiguous(), beta=beta, temperature=temperature)
        torch.testing.assert_close(got[0], alone, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("beta", [0.5, 0.2, 0.0, 1.0])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("rows, size", [(1, 1), (2, 61), (3, 128), (2, 1000), (1, 4097)])
def test_every_plan_says_the_same(plan, beta, rows, size, monkeypatch):
    poison(monkeypatch)
    a, b = logits(rows, size)
    labels = torch.tensor([1, -7, 2][:rows], device=DEVICE)
    out, stats = file.launch(a, b, beta, 1.5, labels, -7, save=True, plan=plan)
    want = truth(a, b, beta, 1.5).masked_fill(labels == -7, 0.0)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-12)
    assert not stats.isnan().any()
    again = file.launch(a, b, beta, 1.5, labels, -7, save=True, plan=plan)
    assert torch.equal(out, again[0])
    assert torch.equal(stats, again[1])


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("target", [1e-8, 1e-6, 1e-3, 0.1])
def test_small_divergences_keep_their_digits(plan, target):
    a, b = logits(2, 500, noise=math.sqrt(8 * target))
    for beta in (0.5, 0.2, 0.0):
        out = file.launch(a, b, beta, plan=plan)[0]
        torch.testing.assert_close(out.double(), truth(a, b, beta), rtol=1e-5, atol=1e-12)
        same = file.launch(a, a.clone(), beta, plan=plan)[0]
        assert (same == 0).all()


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("beta", [0.5, 0.3, 0.0, 1.0])
def test_ignored_rows_are_zero_whatever_is_in_them(which, beta, monkeypatch):
    poison(monkeypatch)
    a, b = logits(4, 70)
    a[1, 3], b[3, 5] = math.nan, math.inf
    labels = torch.tensor([5, -100, 0, -100], device=DEVICE)
    grad = torch.tensor([1.0, 2.0, -3.0, 4.0], device=DEVICE)
    got = with_gradients(lambda x, y: BOTH[which](x, y, beta=beta, labels=labels), a, b, grad)
    want = with_gradients(lambda x, y: truth(x, y, beta), a[::2].double(), b[::2].double(), grad[::2])
    for found, true in zip(got, want, strict=True):
        assert (found[1::2] == 0).all()
        check(found[::2], true, 2e-5, size=1e-2)


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("beta", [0.5, 0.3, 0.0, 1.0])
def test_a_bad_row_is_nan_and_no_other(which, beta):
    a, b = logits(7, 40)
    a[0, 3], b[1, 39], a[2, 0], b[3, 1] = math.nan, math.nan, math.inf, math.inf
    a[4], b[5] = NOTHING, NOTHING
    got = with_gradients(lambda x, y: BOTH[which](x, y, beta=beta), a, b, torch.ones(7, device=DEVICE))
    want = with_gradients(lambda x, y: truth(x, y, beta), a[6:].double(), b[6:].double(), torch.ones(1, device=DEVICE))
    for found, true in zip(got, want, strict=True):
        assert found[:6].isnan().all()
        check(found[6:], true, 2e-5)


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize("beta", [0.5, 0.3])
def test_excluded_tokens(which, beta):
    a = torch.tensor([[0.0, NOTHING, NOTHING], [0.0, 0.0, NOTHING], [1.0, NOTHING, 2.0]], device=DEVICE)
    b = torch.tensor([[NOTHING, 0.0, NOTHING], [0.0, NOTHING, NOTHING], [1.0, NOTHING, 2.5]], device=DEVICE)
    out, of_a, of_b = with_gradients(lambda x, y: BOTH[which](x, y, beta=beta), a, b, torch.ones(3, device=DEVICE))
    # The definition on numbers that are as good as excluded.
    want = with_gradients(
        lambda x, y: truth(x, y, beta),
        a.double().clamp(min=-200),
        b.double().clamp(min=-200),
        torch.ones(3, device=DEVICE),
    )
    for found, true in zip((out, of_a, of_b), want, strict=True):
        check(found, true, 1e-6)


@pytest.mark.parametrize("which", BOTH)
def test_kl_is_infinite_where_the_other_excludes_a_token(which):
    a = torch.tensor([[0.0, 0.0, 1.0], [0.0, NOTHING, 1.0], [-400.0, 0.0, 1.0]], device=DEVICE)
    b = torch.tensor([[0.0, NOTHING, 1.0], [0.0, 0.0, 1.0], [NOTHING, 0.0, 1.0]], device=DEVICE)
    out, of_a, of_b = with_gradients(lambda x, y: BOTH[which](x, y, beta=0.0), a, b, torch.ones(3, device=DEVICE))
    p, q = a[1].softmax(-1), b[1].softmax(-1)
    assert out[0] == out[2] == math.inf
    assert out[1].item() == pytest.approx(float((p[::2] * (p[::2] / q[::2]).log()).sum()), rel=1e-6)
    assert of_a[::2].isnan().all()
    assert of_a[1].isfinite().all()
    torch.testing.assert_close(of_b, b.softmax(-1) - a.softmax(-1), rtol=1e-5, atol=1e-7)


def test_ends_are_the_limits_of_beta():
    a, b = (x.double() for x in logits(3, 50))
    for end, near in ((0.0, 1e-6), (1.0, 1 - 1e-6)):
        scaled = jsd(a, b, beta=near) / min(near, 1 - near)
        # JS_beta / beta tends to KL(p || q), JS_beta / (1-beta) to KL(q || p).
        assert torch.allclose(jsd(a, b, beta=end), scaled, rtol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 0.3, 0.0])
def test_only_what_is_wanted_is_made(beta, monkeypatch):
    a, b = logits(3, 50)
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *s, **k: made.append(empty(*s, **k)) or made[-1])
    b.requires_grad_()
    fused(a, b, beta=beta).sum().backward()
    want = with_gradients(lambda x, y: truth(x, y, beta), a.double(), b.double(), torch.ones(3, device=DEVICE))
    check(b.grad, want[2], 2e-5)
    assert sum(x.numel() for x in made if x.shape[-1:] == (50,)) == 150


@pytest.mark.parametrize("beta", [0.5, 0.25, 0.0, 1.0])
@pytest.mark.parametrize("which", BOTH)
def test_gradcheck_in_double(which, beta):
    a, b = (x.double().requires_grad_() for x in logits(3, 6, noise=1.0))
    labels = torch.tensor([0, -100, 1], device=DEVICE)
    assert torch.autograd.gradcheck(
        lambda x, y: BOTH[which](x, y, beta=beta, temperature=1.5, labels=labels), (a, b), fast_mode=False
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(dtype, grad):
    a, b = logits(3, 20)
    a, b = a.to(dtype).requires_grad_(grad), b.to(dtype)
    labels = torch.tensor([0, -100, 1], device=DEVICE)
    torch.library.opcheck(torch.ops.steer.jsd.default, (a, b, 0.5, 1.0, labels, -100, grad))
    stats = torch.ops.steer.jsd(a.detach(), b, 0.5, 1.0, None, -100, True)[1]
    g = torch.ones(3, device=DEVICE)
    how = (g, a.detach(), b, stats, 0.5, 1.0, None, -100, True, False)
    torch.library.opcheck(torch.ops.steer.jsd_backward.default, how)


def test_it_compiles_without_a_break():
    a, b = logits(3, 40)
    a.requires_grad_()

    def loss(x, y):
        return fused(x, y, temperature=2.0).mean()

    loss(a, b).backward()
    plain, a.grad = a.grad, None
    torch.compile(loss, fullgraph=True, backend="aot_eager")(a, b).backward()
    assert torch.equal(a.grad, plain)


def test_the_dispatcher_finds_it():
    with steer_kernels.dispatch.prefer("triton"):
        assert steer_kernels.best("jsd", "cpu") is fused
    assert steer_kernels.best("jsd", "cpu") is jsd.reference


@pytest.mark.parametrize("which", BOTH)
@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"second": torch.zeros(2, 4)}, "(2, 4)"),
        ({"beta": 1.5}, "1.5"),
        ({"beta": math.nan}, "beta"),
        ({"temperature": -1.0}, "-1.0"),
        ({"temperature": math.inf}, "temperature"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "(3,)"),
        ({"labels": torch.zeros(2)}, "float32"),
        ({"second": torch.zeros(2, 3, dtype=torch.int32)}, "int32"),
        ({"first": torch.zeros(2, 0), "second": torch.zeros(2, 0)}, "(2, 0)"),
    ],
)
def test_wrong_calls_say_what_was_given(which, wrong, says):
    call = {"first": torch.zeros(2, 3), "second": torch.zeros(2, 3), **wrong}
    first, second = call.pop("first").to(DEVICE), call.pop("second").to(DEVICE)
    if "labels" in call:
        call["labels"] = call["labels"].to(DEVICE)
    with pytest.raises(ValueError) as caught:
        BOTH[which](first, second, **call)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "rows, size, element, plan",
    [(1, 151936, 2, "split"), (64, 151936, 2, "group"), (4096, 151936, 2, "group"), (4096, 32000, 2, "row")],
)
def test_the_plan_depends_on_what_fits(rows, size, element, plan, monkeypatch):
    monkeypatch.setattr(plan_file, "INTERPRETED", False)
    h100 = plan_file.Machine(processors=132, l2=50 << 20)
    assert plan_file.choose(rows, size, element, h100) == plan
    for which in ("row", "split", "group"):
        cut = plan_file.settings(which, rows, size, element, h100)
        assert cut.slices * cut.span >= size > (cut.slices - 1) * cut.span
        assert cut.lanes & (cut.lanes - 1) == 0
        assert cut.span % (cut.lanes * cut.each) == 0 or which == "row"


def test_backward_reads_what_forward_kept():
    """The rows' gradients add up to 0, as every softmax's do, however alike the rows are."""
    a, b = logits(2, 300, noise=1e-3)
    for beta in (0.5, 0.2, 0.0, 1.0):
        _, stats = file.launch(a, b, beta, save=True)
        ones = torch.ones(2, device=DEVICE)
        for change in backward_file.launch(ones, a, b, stats, beta, 1.0, None, -100, True, True):
            assert (change.sum(-1).abs() < 1e-6 * change.abs().sum(-1) + 1e-9).all()


@pytest.mark.parametrize("beta", [0.5, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_needs_constant_memory(beta, dtype, monkeypatch):
    monkeypatch.setattr(sys.modules["steer_kernels.jsd"], "CHUNK", 1000)
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made.extend(x.untyped_storage().nbytes() // x.element_size() for x in (out,) if torch.is_tensor(x))
            return out

    for rows in (10, 300):
        a, b = logits(rows, 100, dtype=dtype)
        made.clear()
        with Watch():
            jsd.reference(a, b, beta=beta, temperature=2.0)
        # What shares its storage with the inputs is not extra.
        assert max(x for x in made if x != a.numel()) <= 1000
