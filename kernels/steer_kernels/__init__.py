"""The arithmetic of steering, each operation with one signature and as many implementations as there are machines.

The torch references here are exact in what they promise: reductions in fp32, one rounding at the end, inputs and
outputs in the model's dtype. `dispatch.best` picks the implementation for a device.
"""

from __future__ import annotations

from .dispatch import best, register
from .gate import sigmoid_gate
from .jsd import jsd
from .query_shift import query_shift
from .shift import shift, shift_keep_norm
from .token_scores import token_scores

__all__ = ["best", "jsd", "query_shift", "register", "shift", "shift_keep_norm", "sigmoid_gate", "token_scores"]
