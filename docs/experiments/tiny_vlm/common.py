"""What both training stages share: seeded batches made ahead, the learning rate, checkpoints, the progress bar."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def prefetch(make: Callable, seed: int, first: int, last: int, ahead: int = 6) -> Iterator:
    """Yield `make(seed, step)` for each step in order, computed a few steps ahead in one worker process.

    A batch depends on the seed and the step alone, so a resumed run sees the batches that it would have seen.
    """
    with ProcessPoolExecutor(1) as pool:
        waiting = deque(pool.submit(make, seed, step) for step in range(first, min(first + ahead, last)))
        for step in range(first, last):
            batch = waiting.popleft().result()
            if step + ahead < last:
                waiting.append(pool.submit(make, seed, step + ahead))
            yield batch


def cosine(step: int, steps: int, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    """Learning rate: linear warm-up, then half a cosine down to floor * peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def optimiser(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": 0.05},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def save(path: Path, step: int, modules: dict[str, torch.nn.Module], opt: torch.optim.Optimizer, **extra) -> None:
    """Write a checkpoint in one move, so that a run cut off while writing keeps the one before."""
    part = path.with_suffix(".part")
    weights = {name: module.state_dict() for name, module in modules.items()}
    torch.save({"step": step, "opt": opt.state_dict(), **weights, **extra}, part)
    part.replace(path)


def resume(path: Path, modules: dict[str, torch.nn.Module], opt: torch.optim.Optimizer) -> dict:
    """Load a checkpoint if there is one; the step to go on from is under "step"."""
    if not path.exists():
        return {"step": 0}
    state = torch.load(path, weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state[name])
    opt.load_state_dict(state["opt"])
    return state


def progress_bar() -> Progress:
    """A bar with steps done, the time left and a free text."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True,
    )  # fmt: skip
