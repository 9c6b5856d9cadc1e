"""The page's tables, each from the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import protocol
from protocol import MANY, TUNING_SEED, TUNING_SETS, Job
from records import ACROSS, BASE, NEW, Interval, Records, Where, few, harmonic
from rows import ENSEMBLE, NO_NEW, PHOTO, ROWS, SHUFFLED, ZERO

SITUATIONS = ("as they run", "pictures encoded in every step", "pictures' features kept")


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


def tuning(records: Records) -> str:
    """Accuracy on val of each try, and which was taken."""
    rows = []
    for row in ROWS.values():
        found = [
            [records.by_key.get(Job("tune", name, row.name, TUNING_SEED, value=value).key) for name in TUNING_SETS]
            for value in row.tries
        ]
        if not found or any(one is None for line in found for one in line):
            continue
        sums = [tuple(sum(one[what] for one in line if one) for what in ("accuracy", "log_prob")) for line in found]
        best = sums.index(max(sums))
        told = [f"{value:g}: {points(one[0] / len(TUNING_SETS))}" for value, one in zip(row.tries, sums, strict=True)]
        told[best] = f"**{told[best]}**"
        rows.append([f"`{row.name}`", *told])
    return table(["", "", "", ""], rows) if rows else ""


def templates(records: Records) -> str:
    """How often each hand-written prompt was the best on val."""
    counts: dict[str, int] = {}
    for key, one in records.by_key.items():
        if key.startswith("few-shot/") and f"/{ZERO}/" in key:
            counts[one["template"]] = counts.get(one["template"], 0) + 1
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f'"{template}" {count}' for template, count in ordered)


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


def speed(record: Mapping[str, Any] | None) -> str:
    """Seconds of both, by situation."""
    if record is None:
        return ""
    rows = [
        [situation, task, f"{one['ours']:.2f}", f"{one['theirs']:.2f}", f"{one['faster']:.1f} x",
         f"{one['least']:.1f} to {one['most']:.1f}"]
        for situation in SITUATIONS
        for task, one in record[situation].items()
    ]  # fmt: skip
    return table(["", "", "steer, s", "plain torch, s", "faster", f"over {record['turns']} turns"], rows)


def memory(record: Mapping[str, Any] | None) -> str:
    """Megabytes of both."""
    if record is None:
        return ""
    rows = [
        [task, f"{one['ours']:,.0f}", f"{one['theirs']:,.0f}", f"{one['share']:.2f}"]
        for task, one in record["tasks"].items()
    ]
    return table(["", "steer, MB", "plain torch, MB", "share"], rows)


def left_out(records: Records) -> str:
    """What of the protocol was not run, in words; empty where all of it was."""
    if records.scale is None:
        return ""
    gone: dict[str, dict[str, int]] = {}
    for jobs in protocol.jobs(records.scale):
        for job in records.missing(jobs):
            place = f"{job.kind}, {job.shots} shots" if job.kind == "few-shot" else job.kind
            rows = gone.setdefault(place, {})
            rows[job.row] = rows.get(job.row, 0) + 1
    told = [f"{place}: {', '.join(f'`{row}` ({n} fits)' for row, n in rows.items())}" for place, rows in gone.items()]
    return "; ".join(told)


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
