"""What a question costs after a memory: milliseconds to the first token and for each further one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import Case, Record
from protocol import DELTA, OURS, PUBLISHED, SCORERS, WHOLE, Row
from runs import Runs, _options

from steer import prompts

TURNS, MORE = 30, 8


def measure(runs: Runs) -> Record:
    """By way: first token and further ones in milliseconds at batch 1, and a whole answer of two tokens.

    All ways take turns, so that whatever else the machine does falls on all of them; ratios are medians of the ratios
    within one turn, with the quartiles of these ratios.
    """
    setting = runs.setting
    case = Case(setting, *setting.longest, 0)
    ways = _ways(case, runs)
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for turn in range(TURNS + 2):
        for name, run in ways.items():
            times = (_clock(run, 1), _clock(run, 2), _clock(run, 1 + MORE))
            if turn >= 2:  # the first turns warm up
                taken[name].append(times)
    return {
        "task": case.task,
        "shots": case.shots,
        "tokens": case.whole.length,
        "ways": {name: _summed(taken[name], taken["zero-shot"], taken["full, read anew"]) for name in ways},
    }


def _ways(case: Case, runs: Runs) -> dict[str, Callable[[int], Any]]:
    query, options = case.queries[0], _options(runs.setting)
    rows = {
        f"{name}, delta {DELTA:g}": Row(name, "delta", DELTA, {**options, **more})
        for name, more in ((PUBLISHED, {}), (OURS, {}), (WHOLE, {"end_to_end": True}))
    }
    rows |= {f"{name}, keep 0.2": Row(name, "keep", 0.2, SCORERS[name]) for name in ("snapkv", "streaming_llm")}
    memories = {"full, kept": case.whole, **{name: case.build(row.method()) for name, row in rows.items()}}
    asked = case.words.questions([query]).inputs
    alone = case.words.questions([query], after=False).inputs
    told = prompts.encode(
        case.model, case.processor, [prompts.Prompt(query, tuple(case.demonstrations))], template=case.template
    ).inputs
    ways = {"zero-shot": _plain(case.model, alone), "full, read anew": _plain(case.model, told)}
    return ways | {name: _after(case.model, memory.bind(case.model), asked) for name, memory in memories.items()}


def _plain(model: Any, inputs: Any) -> Callable[[int], Any]:
    return lambda tokens: model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


def _after(model: Any, memory: Any, inputs: Any) -> Callable[[int], Any]:
    return lambda tokens: model.generate(
        **inputs, past_key_values=memory, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )


@torch.no_grad()
def _clock(run: Callable[[int], Any], tokens: int) -> float:
    started = time.perf_counter()
    run(tokens)
    return 1e3 * (time.perf_counter() - started)


def _summed(own: list[Any], zero: list[Any], full: list[Any]) -> dict[str, Any]:
    def token(times: tuple[float, float, float]) -> float:
        return (times[2] - times[0]) / MORE

    against = [a[1] / b[1] for a, b in zip(own, zero, strict=True)]
    low, _, high = statistics.quantiles(against, n=4)
    return {
        "first_ms": round(statistics.median(one[0] for one in own), 2),
        "token_ms": round(statistics.median(map(token, own)), 2),
        "first_of_zero": round(statistics.median(a[0] / b[0] for a, b in zip(own, zero, strict=True)), 3),
        "first_of_full": round(statistics.median(a[0] / b[0] for a, b in zip(own, full, strict=True)), 3),
        "token_of_zero": round(statistics.median(map(token, own)) / statistics.median(map(token, zero)), 3),
        "token_of_full": round(statistics.median(map(token, own)) / statistics.median(map(token, full)), 3),
        "question_of_zero": round(statistics.median(against), 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }
