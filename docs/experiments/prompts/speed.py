"""Steps of fitting and predictions: steer beside plain torch (authors_way.py), in turn.

Steer runs as it does by default; beside that, the same with pictures encoded in every step by both, and with pictures'
features kept by both, which tells where the gain comes from.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import peak
import torch
from runs import Book, Record

from bench import A_STEP, ASK, ASK_ONE, ASKED, PREDICTED, SIZES, Bench

TURNS = 3
STEPS, MORE = 2, 3  # steps of theirs; and of ours beyond the first, in which things are done once
PAIRS = {
    "as they run": {A_STEP: ("ours", "theirs"), ASK: ("ask ours", "ask theirs"), ASK_ONE: ("one ours", "one theirs")},
    "pictures encoded in every step": {A_STEP: ("ours, pictures anew", "theirs")},
    "pictures' features kept": {A_STEP: ("ours", "theirs, features kept")},
}
"""What is set beside what, by situation."""


def measure(book: Book) -> None:
    """Write down times, then memory."""
    if "speed" not in book.records:
        book.add("speed", times(Bench()))
    if "memory" not in book.records:
        book.add("memory", peak.measure())


def times(bench: Bench, turns: int = TURNS) -> Record:
    """By situation and task: the medians of both over the turns, and the median of the ratios within a turn."""
    texts = {name: bench.ids(name) for name in SIZES}
    lengths = {name: int((ids != bench.tokenizer.pad_token_id).sum(1).max()) for name, ids in texts.items()}
    apart, timed = {}, {situation: {} for situation in PAIRS}
    for name in SIZES:
        method = bench.ours(name, 1)
        learned, shown = bench.learned(method), bench.pictures[: SIZES["cocoop"]["pictures"]]
        ours, theirs = method.scores(shown), bench.asked(name, learned, len(shown))
        apart[name] = float((ours - theirs).abs().max() / theirs.abs().max())
        ways = _ways(bench, name, method, learned)
        # all of them in each turn, so that whatever else the machine does falls on all
        taken = [{way: run() for way, run in ways.items()} for _ in range(turns)]
        for situation, tasks in PAIRS.items():
            timed[situation] |= {f"{name}: {task}": _summed(taken, *pair) for task, pair in tasks.items()}
    return {
        "layers": len(bench.model.text_model.encoder.layers), "classes": len(bench.names), "turns": turns,
        "longest": lengths, "sizes": SIZES, "asked": ASKED, "apart": apart, "threads": torch.get_num_threads(),
        **timed,
    }  # fmt: skip


def _ways(bench: Bench, name: str, method: Any, learned: Any) -> dict[str, Callable[[], float]]:
    """Seconds of each way to do a thing, measured anew at every call."""
    count = ASKED[name]

    def ask() -> Any:
        method.set_classes(method.classes)  # forget the texts' features
        return method.predict(bench.pictures[:count], batch_size=PREDICTED)

    assert len(bench.known)  # encoded before time is taken
    return {
        "ours": _step(lambda steps: bench.ours(name, steps)),
        "theirs": lambda: _clock(lambda: bench.theirs(name, STEPS)) / STEPS,
        "ours, pictures anew": _step(lambda steps: bench.ours(name, steps, augment="crop")),
        "theirs, features kept": lambda: _clock(lambda: bench.theirs(name, STEPS, kept=True)) / STEPS,
        "ask ours": lambda: _clock(ask),
        "ask theirs": lambda: _clock(lambda: bench.asked(name, learned, count)),
        "one ours": lambda: _clock(lambda: method.predict(bench.pictures[:1])),
        "one theirs": lambda: _clock(lambda: bench.asked(name, learned, 1)),
    }


def _summed(taken: Sequence[dict[str, float]], ours: str, theirs: str) -> Record:
    ratios = [one[theirs] / one[ours] for one in taken]
    return {
        "ours": round(statistics.median(one[ours] for one in taken), 4),
        "theirs": round(statistics.median(one[theirs] for one in taken), 4),
        "faster": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def _step(fit: Callable[[int], Any]) -> Callable[[], float]:
    """Seconds of one step: of a fit of several less one of a single step, so that what is done once does not count."""
    return lambda: (_clock(lambda: fit(1 + MORE)) - _clock(lambda: fit(1))) / MORE


def _clock(run: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
