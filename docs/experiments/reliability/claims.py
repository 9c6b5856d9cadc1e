"""Each claim against the records: what was measured, and whether that bears it out."""

from __future__ import annotations

from dataclasses import dataclass

from protocol import CLAIMS, ROWS
from reading import Numbers, Records

FREE = ("image_focus", "pasta", "pai", "vcd")
FITTED = ("iti", "cast", "live", "hyper_icl")


@dataclass(frozen=True)
class Verdict:
    """What became of a claim: the words, and `held` None where something is missing."""

    text: str
    held: bool | None
    measured: str


def all_of(records: Records) -> list[Verdict]:
    """One verdict for each claim, in their order."""
    return [Verdict(claim.text, *globals()[f"_{claim.key}"](records)) for claim in CLAIMS]


def _named(records: Records, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if records.has(name, "objects")]


def _best(records: Records, names: tuple[str, ...]) -> str | None:
    """The row that did best on dev."""
    found = [(records.dev(name, "objects"), name) for name in _named(records, names)]
    return max(found)[1] if found else None


def _against(records: Records, first: str, second: str, measure: str, aim: str = "objects") -> Numbers:
    return records.difference((first, aim), (second, aim), measure)


def _bias(records: Records) -> tuple[bool | None, str]:
    n = records.within("none", "random", "adversarial")
    return n.low > 0, f"random less adversarial: {n}"


def _free(records: Records) -> tuple[bool | None, str]:
    best = _best(records, FREE)
    if best is None:
        return None, "no row changed anything without harm"
    n = _against(records, best, "none", "adversarial")
    return n.low > 0, f"{best}: {n}"


def _fitted(records: Records) -> tuple[bool | None, str]:
    best, free = _best(records, FITTED), _best(records, FREE)
    if best is None:
        return False, "every fitted method does harm"
    n = _against(records, best, free or "none", "adversarial")
    return n.low > 0, f"{best} less {free or 'the model alone'}: {n}"


def _threshold(records: Records) -> tuple[bool | None, str]:
    best = _best(records, tuple(row.name for row in ROWS if row.kind not in ("control", "library")))
    if best is None:
        return None, "no method without harm"
    n = _against(records, "threshold", best, "adversarial")
    return n.high >= 0, f"threshold less {best}: {n}"


def _chair(records: Records) -> tuple[bool | None, str]:
    best = _best(records, tuple(row.name for row in ROWS if row.kind not in ("control", "library")))
    if best is None:
        return None, "no method without harm"
    n = _against(records, best, "none", "chair_i")
    return n.high < 0, f"{best}: CHAIR_i {n}"


def _attack(records: Records) -> tuple[bool | None, str]:
    found = [
        (records.dev(row.name, "print"), row.name)
        for row in ROWS
        if row.kind not in ("control", "told") and records.has(row.name, "print")
    ]
    if not found:
        return None, "no method without harm"
    best = max(found)[1]
    n = _against(records, best, "none", "misled", "print")
    return n.high < 0, f"{best}: share misled {n}"


def _cost(records: Records) -> tuple[bool | None, str]:
    focus, vcd = records.cost("image_focus"), records.cost("vcd")
    if focus is None or vcd is None:
        return None, "not measured"
    return focus <= 1.05 and 1.7 <= vcd <= 2.3, f"image_focus {focus:.2f}, vcd {vcd:.2f} times the model alone"


def _library(records: Records) -> tuple[bool | None, str]:
    pairs = [("mitigv vcd", "vcd"), ("mitigv pai", "pai")]
    if not all(records.has(name, "objects") for pair in pairs for name in pair):
        return None, "a row is missing or does harm"
    found = [_against(records, ours, theirs, "accuracy") for theirs, ours in pairs]
    told = "; ".join(f"ours less theirs, {ours}: {n}" for (_, ours), n in zip(pairs, found, strict=True))
    return all(n.low <= 0 <= n.high for n in found), told
