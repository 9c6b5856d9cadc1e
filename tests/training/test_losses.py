"""Each loss against its equation: in fp64 by another library's road, and Hyper-ICL's distance in 60 digits."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch.autograd import gradcheck
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional

from steer.training import losses

WIDTHS = (1, 3, 64)
STATE_LOSSES = (losses.mse, losses.cosine, losses.lorentz)


def two(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 3 + 0.5
    return first.to(dtype), second.to(dtype)


def exact_lorentz(state: torch.Tensor, teacher: torch.Tensor, curvature: float, scale: float) -> float:
    """The paper's equations for one row as they stand: exponential map, Lorentz product, arcosh; in 60 digits."""
    with mpmath.workdps(60):
        kappa, root = mpmath.mpf(curvature), mpmath.sqrt(mpmath.mpf(curvature))

        def mapped(row: torch.Tensor) -> list[mpmath.mpf]:
            numbers = [mpmath.mpf(float(x)) for x in row]
            mean = mpmath.fsum(numbers) / len(numbers)
            spread = mpmath.sqrt(mpmath.fsum((x - mean) ** 2 for x in numbers) / len(numbers) + mpmath.mpf("1e-5"))
            u = [mpmath.mpf(scale) * (x - mean) / spread for x in numbers]
            size = mpmath.sqrt(mpmath.fsum(x * x for x in u))
            space = [mpmath.sinh(root * size) / (root * size) * x for x in u]
            return [mpmath.cosh(root * size) / root, *space]

        x, y = mapped(state), mapped(teacher)
        product = -x[0] * y[0] + mpmath.fsum(a * b for a, b in zip(x[1:], y[1:], strict=True))
        return float((mpmath.acosh(-kappa * product) / root) ** 2)


def literal_lorentz(state: torch.Tensor, teacher: torch.Tensor, curvature: float = 0.1) -> torch.Tensor:
    """The same equations in torch, in the dtype given."""
    root = curvature**0.5
    u, v = (functional.layer_norm(h, h.shape[-1:]) for h in (state, teacher))
    a, b = (root * h.norm(dim=-1, keepdim=True) for h in (u, v))
    time = -(a.cosh() * b.cosh()).squeeze(-1) / curvature
    space = ((a.sinh() / a * u) * (b.sinh() / b * v)).sum(-1)
    return (torch.acosh(-curvature * (time + space)) / root).square()


def test_cross_entropy_is_torch_s_own():
    logits, _ = two(4, 5, 17)
    answers = torch.randint(17, (4, 5), generator=torch.Generator().manual_seed(1))
    truth = functional.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none").view(4, 5)
    torch.testing.assert_close(losses.ce(logits, answers), truth)


def test_kl_is_from_the_teacher_to_the_student():
    student, teacher = two(4, 5, 17)
    truth = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    torch.testing.assert_close(losses.kl_answer(student, teacher), truth)
    assert not torch.allclose(losses.kl_answer(teacher, student), truth)


@pytest.mark.parametrize("width", WIDTHS)
def test_mse_and_cosine_by_the_definition(width):
    state, teacher = two(6, width)
    truth = torch.stack([functional.mse_loss(a, b) for a, b in zip(state, teacher, strict=True)])
    torch.testing.assert_close(losses.mse(state, teacher), truth)
    torch.testing.assert_close(losses.cosine(state, teacher), 1 - functional.cosine_similarity(state, teacher))


def test_cosine_keeps_its_digits_where_the_two_nearly_agree():
    state, other = two(1, 512)
    near = state + 1e-5 * other
    truth = losses.cosine(near, state)
    naive = 1 - functional.cosine_similarity(near.float(), state.float())
    got = losses.cosine(near.float(), state.float()).double()
    torch.testing.assert_close(got, truth, rtol=1e-2, atol=0.0)
    assert (naive - truth).abs() > 100 * (got - truth).abs()


@pytest.mark.parametrize("width", WIDTHS[1:])
@pytest.mark.parametrize("scale", [1.0, None])
@pytest.mark.parametrize("curvature", [0.1, 1.0])
def test_lorentz_is_the_paper_s_distance(width, scale, curvature):
    state, teacher = two(3, width)
    truth = [exact_lorentz(a, b, curvature, scale or width**-0.5) for a, b in zip(state, teacher, strict=True)]
    got = losses.lorentz(state, teacher, curvature, scale)
    torch.testing.assert_close(got, torch.tensor(truth, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("width", [4096, 8192])
@pytest.mark.parametrize("scale", [1.0, None])
@pytest.mark.parametrize("apart", [1e-5, 1.0])
def test_lorentz_in_fp32_at_the_widths_of_real_models(width, scale, apart):
    state, other = two(1, width, dtype=torch.float32)
    teacher = state + apart * other
    state.requires_grad_(True)
    got = losses.lorentz(state, teacher, scale=scale)
    truth = exact_lorentz(state[0].detach(), teacher[0], 0.1, scale or width**-0.5)
    # Between rounded states 1e-5 apart the angle itself has three digits.
    torch.testing.assert_close(
        got.double(), torch.tensor([truth]).double(), rtol=1e-2 if apart == 1e-5 else 1e-4, atol=0
    )
    got.sum().backward()
    assert state.grad.isfinite().all()
    assert state.grad.abs().sum() > 0


@pytest.mark.parametrize("width", [4096, 8192])
def test_the_paper_s_form_as_written_fails_in_fp32_there(width):
    """Beside a teacher that is near, where a fit goes to, it is NaN or off by more than a tenth."""
    state, other = two(1, width, dtype=torch.float32)
    teacher = state + 1e-5 * other
    truth, literal = exact_lorentz(state[0], teacher[0], 0.1, 1.0), float(literal_lorentz(state, teacher))
    assert not abs(literal / truth - 1) < 0.1
    assert losses.lorentz(state, state, scale=1.0).item() == 0.0 != literal_lorentz(state, state).item()
    small, near = two(1, 16)  # where it can be computed it is the same function
    torch.testing.assert_close(literal_lorentz(small, near), losses.lorentz(small, near, scale=1.0))


@pytest.mark.parametrize("loss", STATE_LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("apart", [0.0, 1e-4, 0.03, 1.0, 30.0])
def test_gradients_of_state_losses(loss, apart):
    state, other = two(3, 8)
    teacher = state + apart * other
    given = state.clone().requires_grad_(True)
    assert gradcheck(lambda h: loss(h, teacher), given, eps=1e-6, atol=1e-5, rtol=1e-3)
    value = loss(given, teacher)
    (gradient,) = torch.autograd.grad(value.sum(), given)
    assert gradient.isfinite().all()
    if apart == 0.0:
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0.0)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("scale", [1.0, None])
def test_gradients_of_lorentz_at_either_scale(scale):
    state, teacher = two(3, 8, seed=3)
    given = state.requires_grad_(True)
    assert gradcheck(lambda h: losses.lorentz(h, teacher, scale=scale), given, rtol=1e-3)


def test_gradients_of_answer_losses():
    logits, teacher = two(2, 3, 7)
    answers = torch.tensor([[0, 6, 2], [1, 1, 5]])
    given = logits.requires_grad_(True)
    assert gradcheck(lambda h: losses.ce(h, answers), given)
    assert gradcheck(lambda h: losses.kl_answer(h, teacher), given)


@pytest.mark.parametrize("loss", (*STATE_LOSSES, losses.kl_answer), ids=lambda loss: loss.__name__)
def test_the_teacher_gets_no_gradient(loss):
    state, teacher = two(3, 8)
    state.requires_grad_(True), teacher.requires_grad_(True)
    loss(state, teacher).sum().backward()
    assert teacher.grad is None
    assert state.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", (*STATE_LOSSES, losses.kl_answer), ids=lambda loss: loss.__name__)
def test_half_precision_is_read_exactly_and_computed_in_fp32(loss, dtype):
    state, teacher = two(5, 64, dtype=dtype)
    got = loss(state, teacher)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), loss(state.double(), teacher.double()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", STATE_LOSSES, ids=lambda loss: loss.__name__)
def test_a_state_of_zeros_has_finite_gradients(loss):
    state, teacher = torch.zeros(2, 8, requires_grad=True), two(2, 8, dtype=torch.float32)[0]
    loss(state, teacher).sum().backward()
    assert state.grad.isfinite().all()
