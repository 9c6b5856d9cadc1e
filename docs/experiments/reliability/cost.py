"""Time for a written token, each row against the model alone in the same round, one question at a time."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from protocol import ROWS

from steer import prompts

ROUNDS, TOKENS, QUESTIONS = 15, 8, 4


def measure(runs: Any) -> dict[str, Any]:
    """The median over rounds of the ratio in each round, and milliseconds for a token of the model alone."""
    questions = runs._test[runs.sizes.seeds[0]].captions[:QUESTIONS]
    ways: dict[str, Any] = {"none": None}
    for row in ROWS:
        choice = runs.book.records.get(f"{row.name}/objects/{runs.sizes.seeds[0]}", {}).get("choice")
        if choice is not None and row.kind not in ("library", "control"):
            ways[row.name] = runs._makers.make(row.name, choice, "objects", 0).method
    found: dict[str, list[float]] = {name: [] for name in ways}
    alone: list[float] = []
    for number in range(ROUNDS + 1):
        seconds = {name: _seconds(runs, questions, method) for name, method in ways.items()}
        if number:  # the first round warms up
            alone.append(seconds["none"])
            for name, value in seconds.items():
                found[name].append(value / seconds["none"])
    ratios = {name: round(median(values), 3) for name, values in found.items()}
    return {"ratios": ratios, "ms": round(1000 * median(alone) / (TOKENS * QUESTIONS), 2)}


def _seconds(runs: Any, questions: list[Any], method: Any) -> float:
    """For TOKENS tokens, whether or not the answer ends before."""
    import steer

    batch = [prompts.encode(runs.model, runs.processor, [prompts.Prompt(one.example)]).inputs for one in questions]
    start = time.perf_counter()
    for inputs in batch:
        options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
        if method is None:
            runs.model.generate(**inputs, **options)
        else:
            with steer.attach(runs.model, method, measure="none"):
                runs.model.generate(**inputs, **options)
    return time.perf_counter() - start
