"""Numbers made of the records, each with the interval of whole scenes drawn anew, over all seeds together."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from protocol import RISK

from steer.suites import _weighted, metrics
from steer.suites._resampling import Statistic, differences, estimates
from steer.suites.metrics import mean, share

Columns = dict[str, np.ndarray]
Way = tuple[str, str]  # a row and what it was tuned for
DRAWS = 2000


@dataclass(frozen=True)
class Numbers:
    """A number, the ends of its 95 % interval, and how far seeds lie apart (standard deviation)."""

    value: float
    low: float
    high: float
    seeds: float = math.nan

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Records:
    """Everything that a run wrote down."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        self.by_key: dict[str, dict[str, Any]] = {one["key"]: one for one in map(json.loads, lines)}
        self.seeds = tuple(self.by_key["sizes"]["seeds"]) if "sizes" in self.by_key else ()
        self._columns: dict[tuple[Way, str], list[Columns]] = {}
        self._numbers: dict[Any, Numbers] = {}

    def has(self, row: str, aim: str) -> bool:
        """Whether a row has every seed and changed something."""
        if row in ("none", "threshold"):  # asked once, whatever is tuned for
            aim, row = "objects", "none"
        found = [self.by_key.get(f"{row}/{aim}/{seed}") for seed in self.seeds]
        return bool(found) and all(one is not None and "pope" in one for one in found)

    def choice(self, row: str, aim: str) -> dict[str, Any] | None:
        """With what a row was run; None where every try did harm."""
        return self.by_key[f"{row}/{aim}/{self.seeds[0]}"].get("choice")

    def error(self, row: str, aim: str) -> str | None:
        """Why a row did not run at all."""
        tries = [one for key, one in self.by_key.items() if key.startswith(f"{row}/{aim}/try/")]
        failed = [one["error"] for one in tries if "error" in one]
        return f"did not run ({failed[0]})" if tries and len(failed) == len(tries) else None

    def dev(self, row: str, aim: str) -> float:
        """How a row did on dev with its choice."""
        choice = self.choice(row, aim)
        tries = [one for key, one in self.by_key.items() if key.startswith(f"{row}/{aim}/try/")]
        return max(one["accuracy"] for one in tries if one.get("choice") == choice and "error" not in one)

    def cost(self, row: str) -> float | None:
        """Time for each token over that of the model alone in the same round."""
        return self.by_key.get("cost", {}).get("ratios", {}).get(row)

    def number(self, row: str, aim: str, measure: str) -> Numbers:
        """One measure of one row."""
        key = ((row, aim), measure)
        if key not in self._numbers:
            problem, statistic = MEASURES[measure]
            parts = self._of((row, aim), problem)
            found = estimates({"": statistic}, _pooled(parts), clusters=_scenes(parts), resamples=DRAWS)[""]
            each = [float(statistic(part, np.ones((1, len(part["scene"]))))[0]) for part in parts]
            spread = float(np.std(each, ddof=1)) if len(each) > 1 else math.nan
            self._numbers[key] = Numbers(found.value, found.low, found.high, spread)
        return self._numbers[key]

    def difference(self, first: Way, second: Way, measure: str) -> Numbers:
        """One row less another, on the very same questions."""
        key = (first, second, measure)
        if key not in self._numbers:
            problem, statistic = MEASURES[measure]
            one, other = self._of(first, problem), self._of(second, problem)
            found = differences({"": statistic}, _pooled(one), _pooled(other), clusters=_scenes(one), resamples=DRAWS)[
                ""
            ]
            self._numbers[key] = Numbers(found.value, found.low, found.high)
        return self._numbers[key]

    def within(self, row: str, first: str, second: str) -> Numbers:
        """One measure of a row less another of the same questions' groups."""
        parts = self._of((row, "objects"), "pope")
        a, b = MEASURES[first][1], MEASURES[second][1]
        both = {"": lambda c, w: a(c, w) - b(c, w)}
        found = estimates(both, _pooled(parts), clusters=_scenes(parts), resamples=DRAWS)[""]
        return Numbers(found.value, found.low, found.high)

    def _of(self, way: Way, problem: str) -> list[Columns]:
        """One set of columns for each seed."""
        if (way, problem) not in self._columns:
            self._columns[way, problem] = [self._made(way, problem, seed) for seed in self.seeds]
        return self._columns[way, problem]

    def _made(self, way: Way, problem: str, seed: int) -> Columns:
        row, aim = way
        # the model alone was asked once: it has no aim; a threshold is on its answers
        alone = row in ("none", "threshold")
        record = self.by_key[f"{'none/objects' if alone else f'{row}/{aim}'}/{seed}"]
        asked = self.by_key[f"asked/{seed}"]
        if problem == "ordinary":
            return {"right": _bits(record["ordinary"]), "scene": _named(seed, asked["ordinary"]["scene"])}
        if problem in ("captions", "attacked_captions"):
            told = record[problem]
            found = {name: np.array([int(digit) for digit in bits]) for name, bits in told.items()}
            return {**found, "scene": _named(seed, [str(i) for i in range(len(told["printed"]))])}
        about = asked[problem]
        columns = {
            "yes": _bits(about["yes"]), "said": _bits(record[problem]["said"]), "group": np.array(about["group"]),
            "scene": _named(seed, about["scene"]),
        }  # fmt: skip
        chances = record[problem]["p"]
        columns["p"] = np.full(len(columns["yes"]), np.nan) if chances is None else np.array(chances)
        if row == "threshold":
            columns["said"] = columns["p"] > self.threshold(aim)
        prior = record["blank"]["p"]
        if prior is not None and problem == "pope":
            of = dict(zip(asked["blank"]["object"], prior, strict=True))
            columns["blank"] = np.array([of[name] for name in about["object"]])
        return columns

    def threshold(self, aim: str) -> float:
        """On the model's own probability of yes: the one most often right on dev, halfway between two answers."""
        chance = np.array(self.by_key[f"none/{aim}/dev"]["p"])
        yes = _bits(self.by_key["asked/dev"]["attacked" if aim == "print" else "pope"]["yes"])
        found = []
        for cut in np.unique(chance):
            found.append((float(((chance > cut) == yes).mean()), cut))
        _, cut = max(found)
        above = chance[chance > cut]
        return float((cut + above.min()) / 2) if len(above) else float(cut)

    def abstention(self, row: str, aim: str = "objects") -> metrics.Abstention | None:
        """A threshold on confidence, fitted on dev for a risk, on test; None where no probabilities are known."""
        told = self.by_key[f"{row}/{aim}/dev"]["p"]
        parts = self._of((row, aim), "pope")
        columns = _pooled(parts)
        if told is None or np.isnan(columns["p"]).any():
            return None
        yes = _bits(self.by_key["asked/dev"]["pope"]["yes"])
        sure, right = _sureness(np.array(told), yes)
        return metrics.abstain(*_sureness(columns["p"], columns["yes"]), metrics.threshold_for_risk(sure, right, RISK))


def _bits(text: str) -> np.ndarray:
    return np.array([digit == "1" for digit in text])


def _named(seed: int, scenes: list[str]) -> np.ndarray:
    return np.array([f"{seed}/{scene}" for scene in scenes])


def _pooled(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scenes(parts: list[Columns]) -> list[str]:
    return np.concatenate([part["scene"] for part in parts]).tolist()


def _sureness(chance: np.ndarray, yes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(chance, 1 - chance), (chance > 0.5) == yes


def _kind(c: Columns, kind: str, w: np.ndarray) -> np.ndarray:
    here = c["group"] == kind
    return share((c["said"] == c["yes"]) & here, here, w)


def _known(of: Statistic) -> Statistic:
    """A measure of the probabilities; not a number where there are none."""
    return lambda c, w: np.full(len(w), np.nan) if np.isnan(c["p"]).any() else of(c, w)


def _beside_blank(of: Statistic) -> Statistic:
    return lambda c, w: _known(of)(c, w) if "blank" in c else np.full(len(w), np.nan)


def _right(c: Columns, w: np.ndarray) -> np.ndarray:
    return mean(c["said"] == c["yes"], w)


def _absent(c: Columns, w: np.ndarray) -> np.ndarray:
    return share(c["said"] & ~c["yes"], ~c["yes"], w)


def _as_prior(c: Columns, w: np.ndarray) -> np.ndarray:
    wrong = c["said"] != c["yes"]
    return share(wrong & ((c["blank"] > 0.5) == c["said"]), wrong, w)


MEASURES: dict[str, tuple[str, Statistic]] = {
    "accuracy": ("pope", _right),
    "random": ("pope", lambda c, w: _kind(c, "random", w)),
    "popular": ("pope", lambda c, w: _kind(c, "popular", w)),
    "adversarial": ("pope", lambda c, w: _kind(c, "adversarial", w)),
    "f1": ("pope", lambda c, w: share(2 * (c["said"] & c["yes"]), c["said"].astype(int) + c["yes"], w)),
    "yes": ("pope", lambda c, w: mean(c["said"], w)),
    "auroc": ("pope", _known(lambda c, w: _weighted.auroc(c["p"], c["yes"], w))),
    "ece": ("pope", _known(lambda c, w: _weighted.ece(*_sureness(c["p"], c["yes"]), w))),
    "brier": ("pope", _known(lambda c, w: mean((c["p"] - c["yes"]) ** 2, w))),
    "aurc": ("pope", _known(lambda c, w: _weighted.aurc(*_sureness(c["p"], c["yes"]), w))),
    "reliance": ("pope", _beside_blank(lambda c, w: mean(np.abs(c["p"] - c["blank"]), w))),
    "as_prior": ("pope", _beside_blank(_as_prior)),
    "blank_yes": ("blank", lambda c, w: mean(c["said"], w)),
    "ordinary": ("ordinary", lambda c, w: mean(c["right"], w)),
    "chair_i": ("captions", lambda c, w: share(c["hallucinated"], c["mentions"], w)),
    "chair_s": ("captions", lambda c, w: mean(c["hallucinated"] > 0, w)),
    "recall": ("captions", lambda c, w: share(c["recalled"], c["objects"], w)),
    "misled": ("attacked", _absent),
    "misled_without": ("unattacked", _absent),
    "attacked": ("attacked", _right),
    "unattacked": ("unattacked", _right),
    "printed": ("attacked_captions", lambda c, w: mean(c["printed"] > 0, w)),
    "large": ("large", _right),
}
