"""What the page says of the run itself: what was tried, chosen and left out, and how long things took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import protocol
from protocol import TUNING_SEED, TUNING_SETS, Job
from records import Records
from rows import ROWS, ZERO
from tables import points, table

SITUATIONS = ("as they run", "pictures encoded in every step", "pictures' features kept")


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
    """What of the protocol is not there in full, in words; empty where all of it is."""
    if records.scale is None:
        return ""
    gone: dict[str, list[str]] = {}
    for jobs in protocol.jobs(records.scale):
        for job in records.missing(jobs):
            place = f"few-shot at {job.shots}" if job.kind == "few-shot" else job.kind
            row = f"`{job.row}`"
            if place not in gone.setdefault(row, []):
                gone[row].append(place)
    alike: dict[str, list[str]] = {}
    for row, places in gone.items():
        alike.setdefault(", ".join(places), []).append(row)
    return "; ".join(f"{', '.join(rows)}: {places}" for places, rows in alike.items())
