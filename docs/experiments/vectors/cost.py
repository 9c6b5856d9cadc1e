"""What a query costs with each method on: milliseconds and floating-point operations, against the bare query."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from runs import Runs
from torch.utils.flop_counter import FlopCounterMode

import steer
from steer import prompts

ROUNDS = 40
CHEAP = {"contexts": 4, "trials": 1}


def measure(runs: Runs, task: str) -> dict[str, dict[str, float]]:
    """By row: milliseconds of one forward at batch 1, its ratio to the bare query's, and the ratio of operations.

    All ways take turns, so that whatever else the machine does falls on all of them; ratios are medians of the ratios
    within one turn. A method is attached before the clock starts, as it would be for many queries.
    """
    setting = runs.setting
    setting.steps = 2  # what a method learned does not change what it costs
    data = setting.data(task, 0)
    query = data.test[0]
    told = [setting.demonstrations(task, data.train, shots, 0).for_queries([query])[0] for shots in (8, 16)]
    ways: dict[str, tuple[prompts.Prompt, tuple[Any, ...]]] = {
        "zero-shot": (prompts.Prompt(query), ()),
        "icl-8": (told[0], ()),
        "icl-16": (told[1], ()),
    }
    for row in setting.rows():
        if row.name != "savs":
            quick = replace(row, base=row.base | {key: CHEAP[key] for key in row.base if key in CHEAP})
            ways[row.name] = (prompts.Prompt(query), (runs.fitted(task, quick),))
    inputs = {name: _inputs(setting, prompt) for name, (prompt, _) in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (_, items) in ways.items():
            with _on(setting.model, items):
                _clock(lambda name=name: setting.model(**inputs[name]))
                times[name].append(_clock(lambda name=name: setting.model(**inputs[name])))
    found = {}
    for name, (_, items) in ways.items():
        with _on(setting.model, items):
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                setting.model(**inputs[name])
        ratio = statistics.median(a / b for a, b in zip(times[name], times["zero-shot"], strict=True))
        found[name] = {
            "ms": round(statistics.median(times[name]), 2),
            "time": round(ratio, 3),
            "operations": counter.get_total_flops(),
        }
    bare = found["zero-shot"]["operations"]
    return {name: {**one, "flops": round(one["operations"] / bare, 3)} for name, one in found.items()}


def _on(model: Any, items: tuple[Any, ...]) -> AbstractContextManager[Any]:
    return steer.attach(model, *items, measure="none", strict=False) if items else nullcontext()


def _inputs(setting: Any, prompt: prompts.Prompt) -> dict[str, torch.Tensor]:
    return setting.batches([prompt])[0].inputs


@torch.no_grad()
def _clock(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started)
