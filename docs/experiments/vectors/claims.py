"""Whether what was claimed held: each claim a comparison of rows on the same queries, chosen on dev, never on test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from protocol import CLAIMS, ORDERS, Row
from records import Records

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Subject:
    """One setting, as claims look at it.

    Attributes:
        records: of its run.
        rows: the methods compared.
        tasks, single, adaptive: those that were finished.
        searched: on which task's dev the choices of a task were made, where not its own.
        ordered: the task on which orders were compared.
        time: of each row, a query's time over the bare query's.
    """

    records: Records
    rows: list[Row]
    tasks: list[str]
    single: list[str]
    adaptive: list[str]
    searched: dict[str, str]
    ordered: str
    time: dict[str, float]

    def of_kind(self, *kinds: str) -> list[str]:
        """Names of the rows of some kinds."""
        return [row.name for row in self.rows if row.kind in kinds]

    def best(self, task: str, among: list[str]) -> str | None:
        """The row that did best on dev."""
        return self.records.best(task, among, self.searched.get(task))

    def against(self, first: list[str], second: list[str], tasks: list[str]) -> tuple[Interval | None, str]:
        """Best of some rows less best of others; who that was, in words."""
        names = {task: (self.best(task, first), self.best(task, second)) for task in tasks}
        found = {task: pair for task, pair in names.items() if None not in pair}
        return self.records.difference_by_task(found), _who(found)  # type: ignore[arg-type]


PUBLISHED = ("live", "head_shift", "mimic", "hyper_icl", "hificl")
NOT_SHOWN, REVERSED = "failed: not shown", "failed: the reverse"
FITTED = ("layer", "head", "gated", "keys", "own")


def verdicts(subject: Subject) -> list[tuple[str, str, str]]:
    """(claim, verdict, the numbers)."""
    return [(claim.text, *_TESTS[claim.key](subject)) for claim in CLAIMS]


def _judge(found: Interval | None, more: str = "") -> tuple[str, str]:
    if found is None:
        return "not run", more
    mean, low, high = found
    word = "held" if low > 0 else REVERSED if high < 0 else NOT_SHOWN
    return word, f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] {more}".strip()


def _worst(words: list[str]) -> str:
    """The verdict on a claim of several parts."""
    return next((word for word in ("not run", REVERSED, NOT_SHOWN) if word in words), "held")


def _icl(s: Subject) -> tuple[str, str]:
    return _judge(s.records.difference("icl-8", "zero-shot", s.tasks))


def _fitted(s: Subject) -> tuple[str, str]:
    return _judge(*s.against(s.of_kind(*FITTED), s.of_kind("heuristic"), s.tasks))


def _icl_cost(s: Subject) -> tuple[str, str]:
    names = {task: (s.best(task, s.of_kind(*FITTED)), "icl-8") for task in s.tasks}
    found = {task: pair for task, pair in names.items() if pair[0]}
    difference = s.records.difference_by_task(found)  # type: ignore[arg-type]
    slowest = max((s.time.get(pair[0] or "", float("nan")) for pair in found.values()), default=float("nan"))
    word, numbers = _judge(difference, f"{_who(found)}; time {slowest:.2f} x")  # type: ignore[arg-type]
    as_right = difference is not None and difference[1] >= 0
    if difference is None:
        return word, numbers
    return ("held" if as_right and slowest <= 1.15 else "failed"), numbers


def _head(s: Subject) -> tuple[str, str]:
    return _judge(s.records.difference("head_shift", "live", s.tasks))


def _adaptive(s: Subject) -> tuple[str, str]:
    gated = s.of_kind("gated")
    best = {task: s.best(task, gated) for task in s.adaptive}
    parts = {
        "head_shift": {task: (row, "head_shift") for task, row in best.items() if row},
        "gate at its mean": {task: (row, f"{row}:gate-mean") for task, row in best.items() if row},
        "gates shuffled": {task: (row, f"{row}:gate-shuffled") for task, row in best.items() if row},
    }
    judged = {name: _judge(s.records.difference_by_task(names)) for name, names in parts.items()}  # type: ignore[arg-type]
    words = [word for word, _ in judged.values()]
    return _worst(words), "; ".join(
        f"against {name}: {numbers}" for name, (_, numbers) in judged.items()
    ) + f" {_who(best)}"


def _adaptive_single(s: Subject) -> tuple[str, str]:
    word, numbers = _judge(*s.against(s.of_kind("gated"), ["head_shift"], s.single))
    return ("failed" if word == "held" else "not run" if word == "not run" else "held"), numbers


def _order(s: Subject) -> tuple[str, str]:
    name = next(iter(s.records.by_key), "?").split("/")[0]
    spread = {}
    for row in ("icl-8", "task_vector", "live", "head_shift", "hificl"):
        found = [s.records.by_key.get(f"{name}/{s.ordered}/order/{row}/{turn}") for turn in range(ORDERS)]
        if all(found):
            spread[row] = float(np.std([one["accuracy"] for one in found if one], ddof=1))
    if "icl-8" not in spread or len(spread) < 2:
        return "not run", ""
    words = ", ".join(f"{row} {value:.3f}" for row, value in spread.items())
    others = [value for row, value in spread.items() if row != "icl-8"]
    verdict = "held" if spread["icl-8"] > 2 * max(others) else "failed"
    return verdict, f"standard deviation of accuracy over {ORDERS} orders on {s.ordered}: {words}"


def _own(s: Subject) -> tuple[str, str]:
    judged = {row: _judge(s.records.difference("joint", row, s.adaptive)) for row in PUBLISHED}
    words = [word for word, _ in judged.values()]
    return _worst(words), "; ".join(f"against {row}: {numbers}" for row, (_, numbers) in judged.items())


def _who(names: dict[str, object]) -> str:
    firsts = {task: pair[0] if isinstance(pair, tuple) else pair for task, pair in names.items()}
    seconds = {task: pair[1] for task, pair in names.items() if isinstance(pair, tuple)}
    sides = [_listed(side) for side in (firsts, seconds) if side]
    return f"({' against '.join(sides)})" if sides else ""


def _listed(side: dict[str, object]) -> str:
    same = set(side.values())
    return str(next(iter(same))) if len(same) == 1 else ", ".join(f"{task}: {row}" for task, row in side.items())


_TESTS: dict[str, Callable[[Subject], tuple[str, str]]] = {
    "icl": _icl,
    "fitted": _fitted,
    "icl_cost": _icl_cost,
    "head": _head,
    "adaptive": _adaptive,
    "adaptive_single": _adaptive_single,
    "order": _order,
    "own": _own,
}
