"""Sizes, chosen so that a mask of all heads at the longest prompt stays below 5 GiB on a CPU and 20 GiB on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

SEED = 0
LENGTHS, QUICK_LENGTHS = (1024, 4096, 16384), (32, 64, 128)
SHARE = 4  # one key in so many is chosen
BATCH = 0.05  # seconds that the calls of one way take together in a round, at least
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads and their width."""

    heads: int
    kv_heads: int
    head_dim: int


PREFILL = {"cpu": Heads(4, 1, 64), "cuda": Heads(32, 8, 128)}
DECODE = Heads(32, 8, 128)
TINY = Heads(4, 1, 16)
MODEL_LAYERS = 2


def rounds(group: str, length: int) -> int:
    """How often every way is timed."""
    if "decode" in group:
        return 21
    return {1024: 11, 4096: 7}.get(length, 3)
