"""What was claimed before anything was run, and whether it held: each claim a test on the records.

A difference is between mean accuracies over all sets and seeds, the two rows on the same pictures. It is there where
its whole 95 % interval is on one side of 0 (records.py: bootstrap over sets and, within them, seeds).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from protocol import MANY, TUNING_SETS, Job
from records import BASE, NEW, Interval, Records, few, harmonic
from rows import ADAPTERS, COCOOP, COOP, COOP16, COPROMPT, MAPLE, SHUFFLED, SPECIFIC, ZERO

HELD, FAILED, NOT_SHOWN, NOT_RUN = "held", "failed", "failed: not shown", "not run"
NEAR = 0.05  # of chance
EQUAL = 1e-3  # of two scores
FASTER, LESS = 3.0, 0.5


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
    Claim("learned", "Learned context (`coop`, 16 shots) is better than the best hand template on base classes."),
    Claim(
        "growing",
        "What it gains grows with shots: `coop, M=16` on all classes is better at 16 shots than at 1, and in the mean "
        "better at each number of shots than at the one before.",
    ),
    Claim("loses", "CoOp loses on new classes: `coop` is worse there than the best hand template."),
    Claim("recover", "`cocoop`, `maple` and `coprompt` recover new classes: each is better there than `coop`."),
    Claim("harmonic", "`cocoop`, `maple` and `coprompt` each raise the harmonic mean over `coop`'s."),
    Claim("specific", "Context of its own for each class is worse than one for all (both M=16) at 1 shot and at 2."),
    Claim(
        "unheld",
        "With weight 0 `coprompt` is `maple` with adapters: fitted on the same pictures, perturbed alike, both give "
        f"the same scores, to {EQUAL:g}.",
    ),
    Claim(
        "shuffled",
        "Shuffled labels give chance: the accuracy of `coop, M=16` fitted on them is within "
        f"{100 * NEAR:.0f} points of one over the number of classes.",
    ),
    Claim(
        "speed",
        f"CoOp and CoCoOp fit and predict at least {FASTER:g} times faster at 100 classes than they do in plain torch "
        "as their authors have it, each as it runs without being told otherwise.",
    ),
    Claim("memory", f"The most memory that these take is at most {LESS:g} of what they take in plain torch."),
)


def verdicts(records: Records, speed: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """(claim, verdict, the numbers)."""
    return [(claim.text, *_TESTS[claim.key](records, speed)) for claim in CLAIMS]


def judge_above(found: Interval, limit: float = 0.0) -> str:
    """Whether a number is above a limit, with its whole interval."""
    return HELD if found[1] > limit else FAILED if found[2] < limit else NOT_SHOWN


def judge_near(found: Interval, limit: float) -> str:
    """Whether a number is within a limit of 0, with its whole interval."""
    if found[1] >= -limit and found[2] <= limit:
        return HELD
    return FAILED if found[1] > limit or found[2] < -limit else NOT_SHOWN


def worst(words: list[str]) -> str:
    """The verdict on a claim of several parts."""
    return next((word for word in (NOT_RUN, FAILED, NOT_SHOWN) if word in words), HELD)


def signed(found: Interval) -> str:
    """In points of accuracy."""
    return f"{100 * found[0]:+.1f} [{100 * found[1]:+.1f}, {100 * found[2]:+.1f}]"


def _turned(found: Interval) -> Interval:
    return 0.0 - found[0], 0.0 - found[2], 0.0 - found[1]


Verdict = tuple[str, str]


def _learned(records: Records, speed: Any) -> Verdict:
    found = records.difference(COOP, ZERO, BASE)
    return (NOT_RUN, "") if found is None else (judge_above(found), signed(found))


def _growing(records: Records, speed: Any) -> Verdict:
    shots = records.scale.shots if records.scale else ()
    means = [records.mean(COOP16, few(one)) for one in shots]
    if len(shots) < 2 or None in means:
        return NOT_RUN, ""
    whole = records.compare([(COOP16, few(shots[-1])), (COOP16, few(shots[0]))], lambda a, b: a - b)
    assert whole is not None
    word = judge_above(whole)
    if word == HELD and any(b <= a for a, b in zip(means, means[1:], strict=False)):  # type: ignore[operator]
        word = FAILED
    told = ", ".join(f"{100 * mean:.1f}" for mean in means if mean is not None)
    return word, f"{shots[-1]} shots less {shots[0]}: {signed(whole)}; at {', '.join(map(str, shots))} shots {told}"


def _loses(records: Records, speed: Any) -> Verdict:
    found = records.difference(ZERO, COOP, NEW)
    if found is None:
        return NOT_RUN, ""
    return judge_above(found), signed(_turned(found))


def _recover(records: Records, speed: Any) -> Verdict:
    return _each(lambda row: records.difference(row, COOP, NEW))


def _harmonic(records: Records, speed: Any) -> Verdict:
    def difference(row: str) -> Interval | None:
        cells = [(row, BASE), (row, NEW), (COOP, BASE), (COOP, NEW)]
        return records.compare(cells, lambda a, b, c, d: harmonic(a, b) - harmonic(c, d))

    return _each(difference)


def _each(difference: Callable[[str], Interval | None]) -> Verdict:
    found = {row: difference(row) for row in (COCOOP, MAPLE, COPROMPT)}
    words = [NOT_RUN if one is None else judge_above(one) for one in found.values()]
    told = [f"{row} {signed(one)}" for row, one in found.items() if one is not None]
    return worst(words), "; ".join(told)


def _specific(records: Records, speed: Any) -> Verdict:
    found = {shots: records.difference(COOP16, SPECIFIC, few(shots)) for shots in (1, 2)}
    words = [NOT_RUN if one is None else judge_above(one) for one in found.values()]
    told = [f"at {n}: {signed(_turned(one))}" for n, one in found.items() if one is not None]
    return worst(words), "; ".join(told)


def _unheld(records: Records, speed: Any) -> Verdict:
    seeds = records.scale.seeds if records.scale else ()
    keys = [Job("control", name, ADAPTERS, seed).key for name in TUNING_SETS for seed in seeds]
    found = [records.by_key[key] for key in keys if key in records.by_key]
    if not found or len(found) < len(keys):
        return NOT_RUN, ""
    apart, same = max(one["apart"] for one in found), min(one["same"] for one in found)
    told = f"scores apart by at most {apart:.1e}, the same class in {100 * same:.1f} % of the pictures at least"
    return (HELD if apart <= EQUAL else FAILED), f"{told}; {len(found)} pairs of fits"


def _shuffled(records: Records, speed: Any) -> Verdict:
    where = ("control", "all", MANY)
    found, about = records.of(SHUFFLED, where), records.by_key.get("about")
    if found is None or about is None:
        return NOT_RUN, ""
    chance = np.array([[1 / len(about["classes"][name])] for name in about["scale"]["sets"]])
    away = records.compare([(SHUFFLED, where)], lambda a: a - chance.mean())
    assert away is not None
    return judge_near(away, NEAR), f"{signed(away)} from chance"


def _speed(records: Records, speed: Mapping[str, Any] | None) -> Verdict:
    if speed is None:
        return NOT_RUN, ""
    ratios = {name: one["faster"] for name, one in speed["as they run"].items()}
    told = "; ".join(f"{name} {ratio:.1f} x" for name, ratio in ratios.items())
    return (HELD if min(ratios.values()) >= FASTER else FAILED), told


def _memory(records: Records, speed: Mapping[str, Any] | None) -> Verdict:
    if speed is None or "memory" not in speed:
        return NOT_RUN, ""
    shares = {name: one["share"] for name, one in speed["memory"].items()}
    told = "; ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return (HELD if max(shares.values()) <= LESS else FAILED), told


_TESTS: dict[str, Callable[[Records, Mapping[str, Any] | None], Verdict]] = {
    "learned": _learned,
    "growing": _growing,
    "loses": _loses,
    "recover": _recover,
    "harmonic": _harmonic,
    "specific": _specific,
    "unheld": _unheld,
    "shuffled": _shuffled,
    "speed": _speed,
    "memory": _memory,
}
