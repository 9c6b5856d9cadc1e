"""The rows of the benchmark, a file for each family of operations; sizes are those of real models."""

from __future__ import annotations

from ..task import Task
from . import cache, heads, jsd, scores, shift

SCALES = ("quick", "cpu", "cuda")
KERNELS = ("shift", "head_shift", "query_shift", "key_bias", "jsd", "token_scores", "js_select", "compact")


def tasks(scale: str) -> list[Task]:
    """Every row of a scale, those that the targets are about first: a run that is cut short has them."""
    every = [task for module in (shift, heads, jsd, scores, cache) for task in module.tasks(scale)]
    return sorted(every, key=lambda task: not (task.large or task.early or task.decode))
