"""The page's tables, each from the records of one setting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from protocol import ABLATION, BOTH, DELTA, DELTAS, FULL, KEEPS, OURS, PUBLISHED, SCORERS, VECTOR, WHOLE, ZERO
from records import Cell, Interval, Records

EMLOCS = (PUBLISHED, OURS, WHOLE)
MEASURES = ["", "accuracy", "JS held-out, mean", "max", "JS calibration, mean", "max", "agreement", "share"]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def bounds(records: Records, cells: Sequence[Cell]) -> str:
    """Every bounded memory, with the baselines."""
    names = [ZERO, FULL, *(f"{family}:delta={delta:g}" for delta in DELTAS for family in EMLOCS)]
    heads = [*MEASURES, "bytes", "of full", "on disk", "build s", "search forwards"]
    rows = []
    for name in names:
        if not cells or records.has(name, cells) != list(cells):
            continue
        sizes = [number(records.mean(name, cells, "bytes"), ",.0f")]
        sizes.append(number(records.mean(name, cells, "of_whole"), ".3f"))
        sizes.append(number(records.mean(name, cells, "disk"), ",.0f"))
        costs = [number(records.mean(name, cells, one), ".1f") for one in ("seconds", "forwards")]
        rows.append([*_measures(records, cells, name), *sizes, *costs])
    return table(heads, rows)


def by_cell(records: Records) -> str:
    """Accuracy, and the share that is kept, of a few rows in every cell."""
    middle = [f"{family}:delta={DELTA:g}" for family in EMLOCS]
    names = [name for name in (ZERO, FULL, *middle) if any(records.of(cell, name) for cell in records.cells)]
    rows = []
    for cell in records.cells:
        line = []
        for name in names:
            found = records.accuracy(name, [cell])
            share = records.mean(name, [cell], "share") if name in middle else None
            line.append("-" if found is None else f"{found[0]:.2f}" + ("" if share is None else f" at {share:.2f}"))
        rows.append([f"{cell[0]}, {cell[1]}", *line])
    return table(["task, demonstrations", *names], rows) + "\nAfter `at`: the share of the tokens that is kept.\n"


def shares(records: Records, cells: Sequence[Cell]) -> str:
    """Accuracy and divergence of every rule at every share."""
    keeps = [keep for keep in KEEPS if any(row.endswith(f":keep={keep:g}") for row in records.rows)]
    rows = []
    for family in (PUBLISHED, OURS, *SCORERS):
        names = [f"{family}:keep={keep:g}" for keep in keeps]
        if not cells or not any(records.has(name, cells) == list(cells) for name in names):
            continue
        line = []
        for name in names:
            found, js = records.accuracy(name, cells), records.mean(name, cells, "held_out", "mean")
            line.append("-" if found is None else f"{interval(found)} / {number(js, '.3f')}")
        rows.append([family, *line])
    note = "Accuracy / held-out JS."
    if any(row.startswith("fastv") for row in records.rows):
        kept = [records.mean(f"fastv:keep={keep:g}", cells, "share") for keep in keeps]
        note += " `fastv` drops image tokens only, in layers 2 and 3: of all tokens it keeps "
        note += ", ".join(number(one, ".2f") for one in kept) + "."
    return table(["", *(f"{keep:g}" for keep in keeps)], rows) + f"\n{note}\n"


def ablation(records: Records, cells: Sequence[Cell]) -> str:
    """Ours at the middle bound, and with one thing changed."""
    names = [f"{name}:delta={DELTA:g}" for name in ABLATION]
    known = [name for name in names if records.has(name, cells) == list(cells) and cells]
    if not known:
        return ""
    whole = f"{OURS}:delta={DELTA:g}"
    return table(
        [*MEASURES, "search forwards"],
        [
            [*_measures(records, cells, name), number(records.mean(name, cells, "forwards"), ".1f")]
            for name in (whole, *known)
        ],
    )


def vector(records: Records) -> str:
    """Accuracy of a vector, a memory, and both in one session."""
    names = (ZERO, VECTOR, f"{OURS}:delta={DELTA:g}", BOTH, FULL)
    cells = [cell for cell in records.cells if records.has(BOTH, [cell])]
    if not cells:
        return ""
    rows = []
    for name in names:
        found = [records.accuracy(name, [cell]) for cell in cells]
        rows.append([name, *("-" if one is None else interval(one) for one in found)])
    note = f"`{VECTOR}`: LIVE, fitted on the same demonstrations as bare questions, without the memory."
    return table(["", *(f"{task}, {shots}" for task, shots in cells)], rows) + f"\n{note}\n"


def cost(record: dict[str, Any] | None) -> str:
    """What a question costs after each memory."""
    if record is None:
        return ""
    columns = ("first_ms", "token_ms", "first_of_zero", "first_of_full", "token_of_zero", "token_of_full")
    heads = ["", "first token, ms", "further, ms", "first / zero-shot", "first / full", "further / zero-shot"]
    heads += ["further / full", "answer of two tokens / zero-shot", "quartiles"]
    rows = []
    for name, one in record["ways"].items():
        low, high = one["quartiles"]
        numbers = [f"{one[column]:.2f}" for column in columns]
        rows.append([name, *numbers, f"{one['question_of_zero']:.2f}", f"{low:.2f} to {high:.2f}"])
    note = f"`{record['task']}`, {record['shots']} demonstrations, {record['tokens']} tokens; one question at a time, "
    note += "all ways in turn, medians of ratios within a turn. `full, read anew` reads the context with each question."
    return table(heads, rows) + f"\n{note}\n"


def peak(record: dict[str, Any] | None) -> str:
    """The most bytes alive in a build."""
    if record is None:
        return ""
    ways = ("read at once", *EMLOCS)
    heads = ["parts", "tokens", "bytes of the whole context", *(f"{way}: peak" for way in ways)]
    heads += [f"{way}: largest tensor" for way in ways] + [f"{way}: memory" for way in EMLOCS]
    rows = []
    for parts, one in record["parts"].items():
        sizes = [f"{one[way][name]:,}" for name in ("peak", "largest") for way in ways]
        sizes += [f"{one[way]['memory']:,}" for way in EMLOCS]
        rows.append([parts, f"{one['tokens']:,}", f"{one['whole']:,}", *sizes])
    note = f"`{record['task']}`, parts of {record['chunk']} demonstrations, delta {DELTA:g}. Bytes of tensors alive, "
    note += "seen at every operation of torch, weights not counted."
    return table(heads, rows) + f"\n{note}\n"


def interval(found: Interval) -> str:
    """A mean with its interval."""
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def _measures(records: Records, cells: Sequence[Cell], name: str) -> list[str]:
    found = records.accuracy(name, cells)
    line = [name, "-" if found is None else interval(found)]
    for where in ("held_out", "calibration"):
        line.append(number(records.mean(name, cells, where, "mean"), ".4f"))
        most = records.values(name, cells, where, "max")
        line.append(number(max(most, default=None), ".2f"))
    agreement, share = records.mean(name, cells, "held_out", "agreement"), records.mean(name, cells, "share")
    return [*line, number(agreement, ".3f"), number(share, ".3f")]
