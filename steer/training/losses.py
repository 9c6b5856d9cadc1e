"""What fitting minimises, each as a small function that gives one number for every row.

Rows are whatever stands before the last dimension: answer tokens (B, A), or aligned tokens of a layer (N,). Everything
is computed in fp32 (or wider, as the inputs are). The teacher's side gets no gradient.
"""

from __future__ import annotations

import torch

__all__ = ["ce", "cosine", "kl_answer", "lorentz", "mse"]

# Below this, arcosh(1 + x)^2 is taken from its series: the closed form's derivative is 0 / 0 at x = 0.
_SERIES = 1e-3
_NORM_EPS = 1e-5


def ce(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Cross-entropy -log p(answer) of logits (..., V) and token ids (...)."""
    return -_wide(logits).log_softmax(-1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)


def kl_answer(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of the distributions that logits (..., V) stand for, at temperature 1 (LIVE)."""
    student, given = _wide(logits).log_softmax(-1), _wide(teacher).detach().log_softmax(-1)
    return (given.exp() * (given - student)).sum(-1)


def mse(state: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of hidden states (..., D) (MimIC; Hyper-ICL's L2 anchor)."""
    return (_wide(state) - _wide(teacher).detach()).square().mean(-1)


def cosine(state: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cos of hidden states (..., D), from the distance of the unit vectors: exact also where they nearly agree."""
    unit, other = (torch.nn.functional.normalize(_wide(h), dim=-1) for h in (state, teacher.detach()))
    return (unit - other).square().sum(-1) / 2


def lorentz(
    state: torch.Tensor, teacher: torch.Tensor, curvature: float = 0.1, scale: float | None = None
) -> torch.Tensor:
    """Squared geodesic distance on the Lorentz hyperboloid of hidden states (..., D) (Hyper-ICL's anchor).

    With u = scale LN(h), affine-free, mapped from the tangent space at the origin (Hyper-ICL, arXiv:2606.04434,
    equations 10 to 16), a = sqrt(curvature) ||u||, b likewise for the teacher, and theta the angle between them:

        x = 2 sinh^2((a - b) / 2) + sinh a sinh b (1 - cos theta);  distance^2 = arcosh(1 + x)^2 / curvature

    This is the paper's distance, written so that nothing cancels: as the difference of Lorentz products it is, in fp32
    at D = 4096 where cosh a is 3e8, NaN for states that agree, and wrong in the second digit for states that nearly do.

    Args:
        state: the student's.
        teacher: the teacher's.
        curvature: kappa, above 0; the paper uses 0.1.
        scale: of u; 1.0 is the paper's text; None is 1 / sqrt(D), where u has length 1 and the distance stays within
            the size of the other losses (at D = 4096 the paper's text makes it 1e4 times as large).
    """
    norm = scale if scale is not None else state.shape[-1] ** -0.5
    u, v = (
        norm * torch.nn.functional.layer_norm(_wide(h), h.shape[-1:], eps=_NORM_EPS) for h in (state, teacher.detach())
    )
    a, b = (curvature**0.5 * h.norm(dim=-1).clamp_min(_tiny(h)) for h in (u, v))
    x = 2 * torch.sinh((a - b) / 2).square() + torch.sinh(a) * torch.sinh(b) * cosine(u, v)
    return _arcosh_squared(x) / curvature


def _arcosh_squared(x: torch.Tensor) -> torch.Tensor:
    """arcosh(1 + x)^2 for x >= 0, smooth at 0."""
    small = x < _SERIES
    # Each branch sees only its own numbers: an overflow in the one not taken would make the gradient NaN.
    near = torch.where(small, x, torch.zeros_like(x))
    series = near * (2 - near * (1 / 3 - near * (4 / 45 - near / 35)))
    far = torch.where(small, torch.ones_like(x), x)
    closed = torch.log1p(far + far.sqrt() * (far + 2).sqrt()).square()
    return torch.where(small, series, closed)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _tiny(x: torch.Tensor) -> float:
    return float(torch.finfo(x.dtype).tiny)
