"""The page's tables, each from the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import protocol
from protocol import MANY
from records import ACROSS, BASE, NEW, Interval, Records, Where, few, harmonic
from rows import (
    COOP,
    COOP16,
    COPROMPT,
    ENSEMBLE,
    KGCOOP,
    MAPLE,
    NO_NEW,
    PHOTO,
    PROMPTSRC,
    SHUFFLED,
    SPECIFIC,
    TIP,
    UNHELD,
    ZERO,
)  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def base_new(records: Records) -> str:
    """Base, new and their harmonic mean, with what each is above the best hand template."""
    heads = [
        "",
        "numbers learned",
        "base",
        "new",
        "harmonic mean",
        "base, above `zero_shot`",
        "new",
        "fit, s",
    ]
    rows = []
    for row in _known(records):
        base, new = records.mean(row, BASE), records.mean(row, NEW)
        if base is None or new is None:
            continue
        both = records.compare([(row, BASE), (row, NEW)], harmonic)
        above = [_above(records, row, where) for where in (BASE, NEW)]
        line = [points(base), points(new), interval(both), *above, _seconds(records, row, "base-new")]
        rows.append([f"`{row}`", _parameters(records, row), *line])
    return table(heads, rows) if rows else ""


def by_shots(records: Records) -> str:
    """Accuracy on all classes by the number of shots."""
    shots = records.scale.shots if records.scale else ()
    rows = []
    for row in _known(records):
        found = [records.compare([(row, few(one))], lambda a: a) for one in shots]
        if any(found):
            rows.append([f"`{row}`", *map(interval, found), _above(records, row, few(MANY))])
    heads = ["", *(f"{one} shot{'s' * (one > 1)}" for one in shots), f"{MANY}, above `zero_shot`"]
    return table(heads, rows) if rows else ""


def across(records: Records) -> str:
    """Fitted on fluent pictures, asked about both styles."""
    rows = []
    for row in _known(records):
        here = records.compare([(row, few(MANY)), (row, ACROSS)], lambda a, b: a, styled=True)
        there = records.compare([(row, few(MANY)), (row, ACROSS)], lambda a, b: b, styled=True)
        if there is not None:
            rows.append([f"`{row}`", interval(here), interval(there), _above(records, row, ACROSS)])
    heads = ["", "fluent, fitted on it", f"{protocol.OTHER_STYLE}, never seen", "the latter above `zero_shot`"]
    return table(heads, rows) if rows else ""


def by_set(records: Records, where: Sequence[Where], form: str = "{}") -> str:
    """Accuracies in each set, means over seeds."""
    sets = records.scale.sets if records.scale else ()
    rows = []
    for row in _known(records):
        cells = [[records.one(name, row, one) for one in where] for name in sets]
        if any(None not in cell for cell in cells):
            rows.append([f"`{row}`", *(form.format(*map(points, cell)) if None not in cell else "-" for cell in cells)])
    return table(["", *sets], rows) if rows else ""


def afterwards(records: Records) -> str:
    """Differences that nobody claimed before the runs."""
    asked = [
        (KGCOOP, COOP, NEW, "new classes"), (PROMPTSRC, COOP, NEW, "new classes"),
        (PROMPTSRC, COOP, BASE, "base classes"), (PROMPTSRC, ZERO, NEW, "new classes"),
        (COPROMPT, UNHELD, BASE, "base classes"), (COPROMPT, UNHELD, NEW, "new classes"),
        (COPROMPT, MAPLE, NEW, "new classes"), (TIP, SPECIFIC, few(MANY), f"all classes, {MANY} shots"),
        (SPECIFIC, COOP16, ACROSS, f"{protocol.OTHER_STYLE}, fitted on fluent"),
    ]  # fmt: skip
    rows = [
        [f"`{first}` less `{second}`", told, f"{100 * found[0]:+.1f} [{100 * found[1]:+.1f}, {100 * found[2]:+.1f}]"]
        for first, second, where, told in asked
        if (found := records.difference(first, second, where)) is not None
    ]
    return table(["", "", "points"], rows) if rows else ""


def controls(records: Records) -> str:
    """Labels shuffled, by set."""
    where = ("control", "all", MANY)
    about = records.by_key.get("about")
    if records.of(SHUFFLED, where) is None or about is None:
        return ""
    sets = about["scale"]["sets"]
    lines = {
        f"`{SHUFFLED}`": [points(records.one(name, SHUFFLED, where)) for name in sets],
        "chance": [points(1 / len(about["classes"][name])) for name in sets],
    }
    return table(["", *sets], [[name, *line] for name, line in lines.items()])


def points(value: float | None) -> str:
    """An accuracy in percent, or a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def interval(found: Interval | None) -> str:
    """The same with its interval."""
    return "-" if found is None else f"{100 * found[0]:.1f} [{100 * found[1]:.1f}, {100 * found[2]:.1f}]"


def _above(records: Records, row: str, where: Where) -> str:
    found = None if row == ZERO else records.difference(row, ZERO, where)
    return "-" if found is None else f"{100 * found[0]:+.1f} [{100 * found[1]:+.1f}, {100 * found[2]:+.1f}]"


def _known(records: Records) -> list[str]:
    """Rows of the run in the order of the tables, the best template first."""
    first = [row for row in (ZERO, PHOTO, ENSEMBLE) if records.scale and row in records.scale.rows]
    return first + [row for row in (records.scale.rows if records.scale else ()) if row not in first]


def _fits(records: Records, row: str, kind: str) -> list[Mapping[str, Any]]:
    start = f"{kind}/"
    return [one for key, one in records.by_key.items() if key.startswith(start) and key.split("/")[2] == row]


def _parameters(records: Records, row: str) -> str:
    kind = "few-shot" if row in NO_NEW else "base-new"
    found = {one["parameters"] for one in _fits(records, row, kind) if "parameters" in one}
    if not found:
        return "0"
    return f"{min(found):,}" if len(found) == 1 else f"{min(found):,} to {max(found):,}"


def _seconds(records: Records, row: str, kind: str) -> str:
    found = sorted(one["seconds"] for one in _fits(records, row, kind) if "seconds" in one)
    return f"{found[len(found) // 2]:.1f}" if found else "-"
