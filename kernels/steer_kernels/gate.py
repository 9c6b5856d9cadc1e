"""The sigmoid gate of K3 and K4: each token decides from its own query how much of a shift it takes.

    g = sigmoid(<f(q), w> + b - lse)

q (..., H, d), w (H, d), b (H,), lse (..., H) or None. f is the identity, or a LayerNorm without affine terms.
"""

from __future__ import annotations

import torch

from ._dtypes import widened

LAYER_NORM_EPS = 1e-5


def sigmoid_gate(
    q: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor | None,
    lse: torch.Tensor | None = None,
    layer_norm: bool = False,
) -> torch.Tensor:
    """The gate g (..., H, 1) in fp32 (or wider, as q is)."""
    wide = widened(q)
    if layer_norm:
        wide = torch.nn.functional.layer_norm(wide, wide.shape[-1:], eps=LAYER_NORM_EPS)
    score = (wide * w).sum(-1)
    if b is not None:
        score = score + b
    if lse is not None:
        score = score - lse
    return torch.sigmoid(score).unsqueeze(-1)
