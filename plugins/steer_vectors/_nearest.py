"""The nearest class mean by cosine, for every head at once."""

from __future__ import annotations

import torch
from einops import rearrange


def class_means(rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """(N, H, d) and classes (N,) -> (H, C, d)."""
    means = [rows[classes == c].mean(0) for c in range(int(classes.max()) + 1)]
    return rearrange(means, "c h d -> h c d")


def cosines(rows: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """(N, H, d) and (H, C, d) -> (N, H, C)."""
    normalize = torch.nn.functional.normalize
    return torch.einsum("nhd, hcd -> nhc", normalize(rows, dim=-1), normalize(means, dim=-1))


def head_accuracy(rows: torch.Tensor, classes: torch.Tensor, *, leave_one_out: bool) -> torch.Tensor:
    """For each head (H,), the share of examples (N, H, d) whose nearest class mean is their class's."""
    means = class_means(rows, classes)
    alike = cosines(rows, means)
    if leave_one_out:
        count = classes.bincount()[classes].to(rows)[:, None, None]
        others = (count * rearrange(means[:, classes], "h n d -> n h d") - rows) / (count - 1)
        own = torch.nn.functional.cosine_similarity(rows, others, dim=-1)
        alike[torch.arange(len(rows)), :, classes] = own
    return (alike.argmax(-1) == classes[:, None]).float().mean(0)
