"""Where the kernels' tests run: compiled on a GPU if there is one, else in Triton's interpreter (tests/conftest.py)."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Slow for two reasons: the interpreter runs one program at a time, and a GPU needs each new variant compiled.
EXAMPLES = int(os.environ.get("STEER_EXAMPLES", 60 if DEVICE == "cuda" else 20))
HALF_TOLERANCE = 1.6e-2


def check(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5, size: float = 0.0) -> None:
    """Compare with an fp64 truth: fp32 relative to its largest number or `size`, half types with the rounded truth."""
    assert got.shape == want.shape, (got.shape, want.shape)
    want = want.to(got.device)
    size = max(size, peak(want))
    if got.dtype in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=HALF_TOLERANCE, atol=1e-5 + 1e-3 * size)
    else:
        torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance * size)


def peak(x: torch.Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that a launcher allocates starts as NaN (or -1): what a kernel does not write is seen."""
    empty, empty_like = torch.empty, torch.empty_like

    def filled(x: torch.Tensor) -> torch.Tensor:
        return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(True if x.dtype == torch.bool else -1)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: filled(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: filled(empty_like(*a, **k)))
