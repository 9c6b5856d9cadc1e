"""The arithmetic of steering, each operation with one signature and as many implementations as there are machines.

The torch references here are exact in what they promise: reductions in fp32, one rounding at the end, inputs and
outputs in the model's dtype. Each is used on the CPU; on CUDA the same operation runs in Triton (`fused/`). The public
functions choose by their first argument's device; `best` gives the choice once, for code that runs again and again.
"""

from __future__ import annotations

from .compact import compact
from .dispatch import best, kernel, prefer, register
from .gate import sigmoid_gate
from .head_shift import head_shift
from .js_select import js_select
from .jsd import jsd
from .key_bias import key_bias
from .query_shift import query_shift
from .shift import shift, shift_
from .token_scores import token_scores

__all__ = [
    "best",
    "compact",
    "head_shift",
    "js_select",
    "jsd",
    "kernel",
    "key_bias",
    "prefer",
    "query_shift",
    "register",
    "shift",
    "shift_",
    "sigmoid_gate",
    "token_scores",
]
