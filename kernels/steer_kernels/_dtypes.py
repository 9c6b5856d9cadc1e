"""Which dtypes are computed in a wider one."""

from __future__ import annotations

import torch

HALF = (torch.float16, torch.bfloat16)


def widened(x: torch.Tensor) -> torch.Tensor:
    """Bring x to fp32 where it is of a half type, else as it is."""
    return x.float() if x.dtype in HALF else x
