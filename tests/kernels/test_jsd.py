"""The divergence against closed forms in mpmath and against the textbook sum in fp64."""

from __future__ import annotations

import math
import sys

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steer_kernels
from steer_kernels import jsd

LN2 = math.log(2)
VOCABULARIES = (2, 7, 1000, 32003, 151936)


def textbook(first: torch.Tensor, second: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """1/2 KL(p||m) + 1/2 KL(q||m) as written, in fp64, on what the rounded logits say."""
    log_p, log_q = ((x.double() / temperature).log_softmax(-1) for x in (first, second))
    log_m = torch.logaddexp(log_p, log_q) - LN2
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).nansum(-1)


def two_valued(vocabulary: int, gap: float) -> tuple[torch.Tensor, torch.Tensor, mpmath.mpf]:
    """p prefers the first token by `gap`, q disprefers it by as much, all else equal; JS in 50 digits."""
    p, q = torch.zeros(2, 1, vocabulary, dtype=torch.float64)
    p[0, 0], q[0, 0] = gap, -gap
    with mpmath.workdps(50):
        masses = []
        for x in (mpmath.mpf(gap), mpmath.mpf(-gap)):
            z = mpmath.exp(x) + vocabulary - 1
            masses.append((mpmath.exp(x) / z, 1 / z))
        (p0, p1), (q0, q1) = masses
        parts = []
        for a, b, times in ((p0, q0, 1), (p1, q1, vocabulary - 1)):
            m = (a + b) / 2
            parts.append(times * (a * mpmath.log(a / m) + b * mpmath.log(b / m)) / 2)
        return p, q, mpmath.fsum(parts)


def apart(vocabulary: int, target: float, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a model's spread (std 4) and a noisy copy whose JS, found by bisection in fp64, is the target."""
    generator = torch.Generator().manual_seed(seed)
    base, noise = torch.randn(2, 1, vocabulary, generator=generator, dtype=torch.float64)
    low, high = 0.0, 64.0
    for _ in range(40):
        middle = (low + high) / 2
        if textbook(4 * base, 4 * base + middle * noise) < target:
            low = middle
        else:
            high = middle
    return (4 * base).to(dtype), (4 * base + low * noise).to(dtype)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("gap", [1e-5, 1e-3, 0.0625, 1.0, 30.0])
def test_closed_form(vocabulary, gap):
    p, q, true = two_valued(vocabulary, gap)
    got = jsd(p.float(), q.float()).item()
    # The absolute part is fp32's normaliser, 1e-7 off in log p, squared.
    assert got == pytest.approx(float(true), rel=2e-5, abs=1e-13)
    assert jsd(p, q).item() == pytest.approx(float(true), rel=1e-9, abs=1e-22)


@pytest.mark.parametrize("vocabulary", [1000, 32003, 151936])
@pytest.mark.parametrize("target", [1e-6, 1e-4, 0.005, 0.3])
def test_small_and_large_divergences_in_fp32(vocabulary, target):
    a, b = apart(vocabulary, target, torch.float32)
    assert jsd(a, b).item() == pytest.approx(target, rel=2e-4)
    assert jsd(a, b).item() == pytest.approx(textbook(a, b).item(), rel=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [1e-4, 0.005, 0.3])
def test_half_precision_logits_lose_nothing_more(dtype, target):
    a, b = apart(151936, target, dtype)
    out = jsd(a, b)
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(textbook(a, b).item(), rel=2e-5)


def test_a_confident_row_is_not_negative():
    # p of one token .99 over 152k: where the bf16 form reads -7e-4.
    base = torch.full((1, 151936), 0.0)
    base[0, 5] = math.log(0.99 / 0.01 * 151935)
    moved = base.clone()
    moved[0, 5] -= 0.05
    assert jsd(base, moved).item() == pytest.approx(textbook(base, moved).item(), rel=1e-4)
    assert jsd(base, moved).item() > 0


@given(
    rows=st.integers(1, 4),
    vocabulary=st.integers(1, 300),
    scale=st.sampled_from([1e-6, 1e-2, 1.0, 40.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    temperature=st.sampled_from([0.25, 1.0, 3.0]),
    seed=st.integers(0, 2**20),
)
def test_laws(rows, vocabulary, scale, dtype, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    base, noise = torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64)
    a, b = (5 * base).to(dtype), (5 * base + scale * noise).to(dtype)
    there, back = jsd(a, b, temperature=temperature), jsd(b, a, temperature=temperature)
    assert torch.equal(there, back)
    assert ((there >= 0) & (there <= LN2)).all()
    assert torch.equal(jsd(a, a, temperature=temperature), torch.zeros_like(there))
    true = textbook(a, b, temperature)
    # 1e-12: below it the textbook sum in fp64 is itself noise.
    assert torch.allclose(there.double(), true, rtol=5e-4, atol=1e-12)


def test_shifting_a_row_by_a_constant_changes_nothing():
    a, b = apart(1000, 1e-4, torch.float32)
    assert jsd(a, b + 128.0).item() == pytest.approx(1e-4, rel=5e-3)  # b + 128 rounds the logits themselves
    assert jsd(a.double(), b.double() + 128.0).item() == pytest.approx(jsd(a.double(), b.double()).item(), rel=1e-8)


def test_excluded_tokens():
    nothing = -math.inf
    a = torch.tensor([[0.0, nothing, nothing], [0.0, 0.0, nothing], [1.0, nothing, 2.0]])
    b = torch.tensor([[nothing, 0.0, nothing], [0.0, nothing, nothing], [1.0, nothing, 2.0]])
    half = 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * LN2 + math.log(1 / 0.75))
    assert jsd(a, b).tolist() == pytest.approx([LN2, half, 0.0], abs=1e-6)


def test_nan_stays():
    a = torch.randn(2, 9)
    b = a.clone()
    b[1, 3] = math.nan
    assert jsd(a, b)[0] == 0
    assert jsd(a, b)[1].isnan()


def test_chunks_agree_and_inputs_are_left_alone(monkeypatch):
    a, b = torch.randn(2, 13, 50, generator=torch.Generator().manual_seed(1))
    kept = a.clone(), b.clone()
    whole = jsd(a, b)
    monkeypatch.setattr(sys.modules["steer_kernels.jsd"], "CHUNK", 120)
    assert torch.equal(jsd(a, b), whole)
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_views_and_no_rows():
    a, b = torch.randn(2, 50, 12).mT.contiguous().mT, torch.randn(2, 50, 12)
    assert torch.allclose(jsd(a[0].T, b[0].T), jsd(a[0].T.contiguous(), b[0].T.contiguous()), atol=1e-7)
    assert jsd(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


def test_mixed_dtypes():
    a, b = torch.randn(2, 3, 50)
    assert torch.equal(jsd(a.bfloat16(), b), jsd(a.bfloat16().float(), b))


@pytest.mark.parametrize(
    "first, second, temperature, says",
    [
        ((2, 3), (2, 4), 1.0, "(2, 4)"),
        ((2, 3, 4), (2, 3, 4), 1.0, "(2, 3, 4)"),
        ((2, 3), (2, 3), 0.0, "temperature"),
        ((2, 3), (2, 3), math.nan, "temperature"),
    ],
)
def test_wrong_calls_say_what_was_given(first, second, temperature, says):
    with pytest.raises(ValueError) as caught:
        jsd(torch.zeros(first), torch.zeros(second), temperature=temperature)
    assert says in str(caught.value)


def test_it_is_dispatched():
    assert steer_kernels.best("jsd", "cpu") is jsd.reference
