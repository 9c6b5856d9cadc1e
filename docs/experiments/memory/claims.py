"""What was claimed before anything was run, and whether it held: each claim a test on the records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from protocol import DELTA, DELTAS, FULL, KEEPS, OURS, PUBLISHED, WHOLE, ZERO
from records import Cell, Interval, Records, interval_of_means

HELD, FAILED, NOT_SHOWN, NOT_RUN = "held", "failed", "failed: not shown", "not run"
NEAR = 0.01  # one point of accuracy
OF_BYTES, OF_TIME, COLLAPSE, VACUOUS = 0.25, 1.2, 0.5, 10.0
TASKS_OF_WORDS = ("antonyms", "past-tense", "capitals")
NOT_LEARNED = ("if-food",)  # held out of tiny-vlm's training


@dataclass(frozen=True)
class Claim:
    """Something stated before it was measured.

    Attributes:
        key: which test decides it.
        text: what is claimed.
    """

    key: str
    text: str


CLAIMS = (
    Claim(
        "bound",
        "The bound holds on held-out questions: the mean divergence from the whole context is at most delta, in every "
        f"memory of `{WHOLE}` at every delta.",
    ),
    Claim("fewer", "Ours keeps fewer tokens than published EMLoC at equal held-out divergence."),
    Claim(
        "collapse",
        "At a share of 0.2 published EMLoC's score collapses on short text demonstrations (it loses more than half of "
        "what demonstrations gain over zero-shot, its answers drive out the sink), and ours does not.",
    ),
    Claim(
        "bytes",
        f"On tiny-vlm the accuracy of ours at delta {DELTA:g} is within one point of the whole context's at a quarter "
        "of its bytes or less.",
    ),
    Claim(
        "time",
        f"A question to a memory of ours at delta {DELTA:g} takes at most {OF_TIME:g} times a question asked with "
        "nothing before it.",
    ),
    Claim(
        "vacuous",
        "Adding up the bounds of parts says nearly nothing: at the longest context (number of parts)^2 delta is above "
        f"half of ln 2 at every delta, and what is measured from end to end is at least {VACUOUS:g} times smaller.",
    ),
)


def verdicts(settings: dict[str, Records]) -> list[tuple[str, str, str]]:
    """(claim, verdict, the numbers), from the records of "A" and "B"."""
    return [(claim.text, *_TESTS[claim.key](settings)) for claim in CLAIMS]


def judge_below(found: Interval, limit: float = 0.0) -> str:
    """Whether a number is below a limit, with its whole interval."""
    return HELD if found[2] < limit else FAILED if found[1] > limit else NOT_SHOWN


def _bound(settings: dict[str, Records]) -> tuple[str, str]:
    worst: dict[str, list[float]] = {}
    for family in (WHOLE, OURS, PUBLISHED):
        for records in settings.values():
            for delta in DELTAS:
                found = records.values(f"{family}:delta={delta:g}", records.cells, "held_out", "mean")
                worst.setdefault(family, []).extend(one / delta for one in found)
    if not worst.get(WHOLE):
        return NOT_RUN, ""
    numbers = "; ".join(
        f"{family}: {sum(one <= 1 for one in ratios)} of {len(ratios)} memories, worst {max(ratios):.2f} x delta"
        for family, ratios in worst.items()
        if ratios
    )
    return (HELD if max(worst[WHOLE]) <= 1 else FAILED), numbers


def _fewer(settings: dict[str, Records]) -> tuple[str, str]:
    differences, left_out = [], 0
    for records in settings.values():
        for cell in records.cells:
            for sampling in range(records.samplings(cell)):
                ours, theirs = (_frontier(records, cell, family, sampling) for family in (OURS, PUBLISHED))
                for js, share in theirs:
                    other = share_at(ours, js)
                    left_out += other is None
                    differences += [] if other is None else [other - share]
    if not differences:
        return NOT_RUN, ""
    found = interval_of_means(differences)
    numbers = f"share of tokens {_signed(found)} over {len(differences)} of published EMLoC's memories"
    return judge_below(found), f"{numbers}; {left_out} others lie where ours has none"


def _frontier(records: Records, cell: Cell, family: str, sampling: int) -> list[tuple[float, float]]:
    """(held-out divergence, share of tokens) of one sampling's memories, bounded ones and those at equal shares."""
    names = [f"{family}:delta={d:g}" for d in DELTAS] + [f"{family}:keep={k:g}" for k in KEEPS]
    found = [records.of(cell, name) for name in names]
    return sorted((one[sampling]["held_out"]["mean"], one[sampling]["share"]) for one in found if len(one) > sampling)


def share_at(points: list[tuple[float, float]], js: float) -> float | None:
    """The share that is kept at a divergence: the smallest share of which no more is lost, on the line between points.

    Args:
        points: (divergence, share).
        js: a divergence; None comes back where all points lose more. Where all lose less, the smallest share counts.
    """
    best: list[tuple[float, float]] = []
    for one, group in groupby(sorted(points), key=lambda point: point[0]):
        share = min(share for _, share in group)
        if not best or share < best[-1][1]:
            best.append((one, share))
    if not best or js < best[0][0]:
        return None
    logs = [math.log(max(one, 1e-9)) for one, _ in best]
    return float(np.interp(math.log(max(js, 1e-9)), logs, [share for _, share in best]))


def _collapse(settings: dict[str, Records]) -> tuple[str, str]:
    records = settings.get("B")
    cells = [cell for cell in records.cells if cell[0] in TASKS_OF_WORDS] if records else []
    rows = (FULL, ZERO, f"{PUBLISHED}:keep=0.2", f"{OURS}:keep=0.2")
    known = [records.accuracy(row, cells) for row in rows] if records else []
    if not known or None in known:
        return NOT_RUN, ""
    full, zero, theirs, ours = (one[0] for one in known if one)
    left = [(one - zero) / (full - zero) for one in (theirs, ours)]
    numbers = f"accuracy {theirs:.2f} against {ours:.2f}, whole {full:.2f}, zero-shot {zero:.2f}; "
    numbers += f"left of the gain: {left[0]:.2f} against {left[1]:.2f}"
    return (HELD if left[0] < COLLAPSE <= left[1] else FAILED), numbers


def _bytes(settings: dict[str, Records]) -> tuple[str, str]:
    records, row = settings.get("A"), f"{OURS}:delta={DELTA:g}"
    cells = [cell for cell in records.cells if cell[0] not in NOT_LEARNED] if records else []
    found = records.difference(row, FULL, cells) if records else None
    if records is None or found is None:
        return NOT_RUN, ""
    share = records.mean(row, cells, "of_whole") or 1.0
    most = max(records.values(row, cells, "of_whole"))
    numbers = f"accuracy {_signed(found)}; bytes {share:.2f} of the whole context's in the mean, {most:.2f} at most"
    if most > OF_BYTES or found[2] < -NEAR:
        return FAILED, numbers
    return (HELD if found[1] >= -NEAR else NOT_SHOWN), numbers


def _time(settings: dict[str, Records]) -> tuple[str, str]:
    ways = {name: records.by_key["cost"]["ways"] for name, records in settings.items() if "cost" in records.by_key}
    if not ways:
        return NOT_RUN, ""
    name = f"{OURS}, delta {DELTA:g}"
    found = {setting: way[name] for setting, way in ways.items()}
    numbers = "; ".join(
        f"({setting}) {one['question_of_zero']:.2f} x, quartiles {one['quartiles'][0]:.2f} to {one['quartiles'][1]:.2f}"
        for setting, one in found.items()
    )
    return (HELD if all(one["question_of_zero"] <= OF_TIME for one in found.values()) else FAILED), numbers


def _vacuous(settings: dict[str, Records]) -> tuple[str, str]:
    records = settings.get("A")
    longest = max((shots for _, shots in records.cells), default=0) if records else 0
    passed, numbers = [], []
    for delta in DELTAS:
        row, bounds, own, measured = f"{OURS}:delta={delta:g}", [], [], []
        for cell in [cell for cell in records.cells if cell[1] == longest] if records else []:
            for one in records.of(cell, row) if records else []:
                # sqrt(JS) is a metric, so square roots add up
                bounds.append(len(one["parts"]) ** 2 * delta)
                own.append(sum(math.sqrt(max(part, 0.0)) for part in one["parts"]) ** 2)
                measured.append(max(one["calibration"]["mean"], 1e-9))
        if bounds:
            passed.append(min(bounds) > math.log(2) / 2 and np.mean(bounds) >= VACUOUS * np.mean(measured))
            numbers.append(f"delta {delta:g}: {np.mean(bounds):.2f}, {np.mean(own):.3f} and {np.mean(measured):.4f}")
    if not passed:
        return NOT_RUN, ""
    intro = f"{longest} demonstrations; from the bounds, from the parts' own divergences, and measured: "
    return (HELD if all(passed) else FAILED), intro + "; ".join(numbers)


def _signed(found: Interval) -> str:
    return f"{found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"


_TESTS: dict[str, Callable[[dict[str, Records]], tuple[str, str]]] = {
    "bound": _bound,
    "fewer": _fewer,
    "collapse": _collapse,
    "bytes": _bytes,
    "time": _time,
    "vacuous": _vacuous,
}
