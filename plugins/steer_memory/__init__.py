"""What the key-value cache keeps: memories of demonstrations, and choices of tokens while a model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import steer

if TYPE_CHECKING:
    from steer.registry import MethodRegistry


@steer.hookimpl
def steer_register_methods(registry: MethodRegistry) -> None:
    """Register every method of this package."""
    from .ada_kv import AdaKV
    from .emloc import EMLoC
    from .expected_attention import ExpectedAttention
    from .fastv import FastV
    from .keydiff import KeyDiff
    from .knorm import Knorm
    from .observed_attention import ObservedAttention
    from .pyramidkv import PyramidKV
    from .random import Random
    from .snapkv import SnapKV
    from .streaming_llm import StreamingLLM
    from .tova import TOVA

    by_attention = (SnapKV, PyramidKV, TOVA, ObservedAttention, ExpectedAttention)
    by_key_or_place = (Knorm, KeyDiff, StreamingLLM, Random)
    for method in (EMLoC, *by_attention, *by_key_or_place, AdaKV, FastV):
        registry.add(method)
