"""The rows of the benchmark, a file for each family of operations; sizes are those of real models."""

from __future__ import annotations

from collections import Counter

from ..task import Task
from . import cache, heads, jsd, scores, shift

SCALES = ("quick", "cpu", "cuda")
KERNELS = ("shift", "head_shift", "query_shift", "key_bias", "jsd", "token_scores", "js_select", "compact")


def tasks(scale: str) -> list[Task]:
    """Every row of a scale, so ordered that a run that is cut short has the most of it.

    First what the targets are about; there and after it, the operations take turns.
    """
    every = [task for module in (shift, heads, jsd, scores, cache) for task in module.tasks(scale)]
    seen: Counter[tuple[str, bool]] = Counter()

    def place(task: Task) -> tuple[bool, int]:
        late = not (task.large or task.early or task.decode)
        seen[task.kernel, late] += 1
        return late, seen[task.kernel, late]

    return sorted(every, key=place)
