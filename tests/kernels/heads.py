"""What the tests of K3 and K4 share: head tensors in every memory layout, and the gate as its formula reads."""

from __future__ import annotations

import random

import torch
from hypothesis import strategies as st

from tests.kernels.settings import DEVICE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DIMS = (1, 2, 6, 16, 20, 80)
LAYOUTS = ("plain", "turned", "sliced", "columns", "shared rows", "shared batch")


def head_tensor(generator, layout, batch, time, heads, dim, dtype=torch.float32):
    """Numbers (B, T, H, d) with the strides that `layout` names."""
    big = torch.randn(batch, time + 2, heads + 1, 2 * dim, generator=generator).to(dtype).to(DEVICE)
    return {
        "plain": lambda: big[:, 2:, 1:, :dim].contiguous(),
        "turned": lambda: big[:, 2:, 1:, :dim].transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": lambda: big[:, 1:-1, 1:, :dim],
        "columns": lambda: big[:, 2:, 1:, ::2],
        "shared rows": lambda: big[:, :1, 1:, :dim].expand(batch, time, heads, dim),
        "shared batch": lambda: big[:1, 2:, 1:, :dim].expand(batch, time, heads, dim),
    }[layout]()


def problem_from(build):
    """A strategy of problems `build(choice, generator)`, each drawn by dice of its own.

    With few examples hypothesis, drawing choice by choice, tries many that differ in one choice only.
    """

    def build_by(seed):
        return build(random.Random(seed).choice, torch.Generator().manual_seed(seed))

    return st.integers(0, 2**31).map(build_by)


def sizes(choice):
    """B, T and H, one of each as often as more."""
    return choice((1, 2, 3)), choice((1, 2, 5, 7, 9)), choice((1, 2, 5))


def some_rows(choice, generator, batch, time):
    """Rows to move: all (None), some, none at all, the same in every batch."""
    kind = choice((None, "some", "none", "shared"))
    if kind is None:
        return None
    rows = torch.rand(1 if kind == "shared" else batch, time, generator=generator) > 0.4
    rows = rows & (kind != "none")
    return (rows.expand(batch, time) if kind == "shared" else rows).to(DEVICE)


def sigmoid(x, w, b, lse, layer_norm):
    """The gate of one head, x (..., d) and w (d,), in fp64: sigmoid(<f(x), w> + b - lse)."""
    if layer_norm:
        x = x - x.sum(-1, keepdim=True) / x.shape[-1]
        x = x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-5).sqrt()
    score = (x * w).sum(-1, keepdim=True) + b
    if lse is not None:
        score = score - lse.unsqueeze(-1)
    return 1 / (1 + torch.exp(-score))


def exact(tensors):
    """Leaves in fp64 with the same numbers; None stays None."""
    return [None if x is None else x.detach().double().requires_grad_() for x in tensors]


def of_head(x, head):
    """The parameters of one head, where one for all has a first dimension of 1."""
    return x[head if x.shape[0] > 1 else 0]
