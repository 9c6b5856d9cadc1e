"""Whether two results are the same to what their dtype can hold, before either is timed."""

from __future__ import annotations

from typing import Any

import torch


def differs(found: Any, wanted: Any, tolerance: float) -> str | None:
    """What is different between two results (a tensor or several), or None.

    The largest and the mean square difference are held against those of what is wanted; of masks, the share of
    elements that differ. A tolerance of 0 asks for the same bits.
    """
    ours, theirs = _several(found), _several(wanted)
    if len(ours) != len(theirs):
        return f"{len(ours)} results instead of {len(theirs)}"
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        where = f" in result {place}" if len(ours) > 1 else ""
        if a.shape != b.shape:
            return f"shape {tuple(a.shape)} instead of {tuple(b.shape)}{where}"
        if a.numel() == 0 or torch.equal(a, b):
            continue
        if a.dtype == torch.bool or tolerance == 0:
            share = (a != b).float().mean().item()
            if share > tolerance:
                return f"{share:.2g} of the elements differ{where}"
            continue
        a, b = a.float(), b.float()
        gap = (a - b).abs_()
        most, usual = gap.max() / b.abs().max(), gap.norm() / b.norm()
        error = torch.maximum(most, usual).item()
        # not `>`: NaN is different from everything
        if not error <= tolerance:
            return f"a relative difference of {error:.2g}{where}, where {tolerance:g} is allowed"
    return None


def _several(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)
