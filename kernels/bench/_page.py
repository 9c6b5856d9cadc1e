"""The pages about the kernels' speed, from the records that `record.py` leaves beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _targets
import _words
from _targets import Target

from steer_kernels.bench.cases import KERNELS
from steer_kernels.bench.rows import OTHERS, Row, from_json
from steer_kernels.bench.table import number, ratio, thousands

COMMAND = "python kernels/bench/record.py"
NAMES = {"eager": "plain torch", "compiled": "torch.compile", "liger": "Liger-Kernel", "kvpress": "kvpress"}
NO_GPU = "no GPU was available"


def write(folder: Path) -> dict[str, str]:
    """Write a page for every record in a folder, and the index; their texts by file name."""
    records = {path.stem.removeprefix("kernels-"): read(path) for path in sorted(folder.glob("kernels-*.json"))}
    pages = {f"kernels-{slug}.md": page(slug, *record, folder) for slug, record in records.items()}
    pages["kernels.md"] = index(records)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return pages


def read(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Machine and rows of a record."""
    record = json.loads(path.read_text(encoding="utf-8"))
    return record["about"], [from_json(row) for row in record["rows"]]


def index(records: dict[str, tuple[dict[str, Any], list[Row]]]) -> str:
    """The page that names the others."""
    gpus = {slug: record for slug, record in records.items() if record[0]["type"] == "cuda"}
    lines = ["# How fast the kernels are", ""]
    lines += [f"Written by `{COMMAND}` from the records beside it. One page a machine:", ""]
    lines += [f"- [{about['device']}](kernels-{slug}.md), {about['date']}" for slug, (about, _) in records.items()]
    if not records:
        lines.append("- none yet")
    lines.append("")
    if not gpus:
        lines += [
            "## On a GPU",
            "",
            *_words.without(COMMAND, NO_GPU),
            "",
            *targets(_targets.gpu(), []),
        ]
    return "\n".join(lines).rstrip() + "\n"


def page(slug: str, about: dict[str, Any], rows: list[Row], folder: Path) -> str:
    """The page of one machine. What its record cannot know stands in `kernels-<slug>.notes.txt`, written by hand."""
    cuda = about["type"] == "cuda"
    lines = [f"# The kernels on {about['device']}", "", *_words.source(slug, about, COMMAND)]
    lines += ["", "## Targets", "", *_words.promised(cuda), ""]
    lines += targets(_targets.gpu() if cuda else _targets.cpu(), rows)
    if not cuda:
        lines += ["", f"Compiled figures are blank on this page: {NO_GPU} here. See [the index](kernels.md)."]
    lines += _words.tests(about)
    notes = folder / f"kernels-{slug}.notes.txt"
    if notes.exists():
        lines += ["", "## What to know", "", notes.read_text(encoding="utf-8").strip()]
    if (folder / f"kernels-{slug}.png").exists():
        lines += ["", f"![bandwidth and speed-ups](kernels-{slug}.png)"]
    lines += ["", "## Figures", "", *_words.LEGEND, ""]
    for kernel in KERNELS:
        lines += _kernel(kernel, [row for row in rows if row.kernel == kernel])
    lines += _decode(rows)
    lines += _left(about, rows)
    return "\n".join([*lines, *_words.how(about)]).rstrip() + "\n"


def targets(promised: Sequence[Target], rows: Sequence[Row]) -> list[str]:
    """The table of promises."""
    lines = ["| target | measured | | of |", "|---|---|---|---|"]
    for target in promised:
        found = target.read(rows)
        if found is None:
            lines.append(f"| {target.text} | | | {'not measured' if rows else NO_GPU} |")
            continue
        value, where = found
        verdict = "met" if target.met(value) else "**not met**"
        lines.append(f"| {target.text} | {ratio(value)} | {verdict} | {where} |")
    return lines


def _kernel(kernel: str, rows: Sequence[Row]) -> list[str]:
    rows = [row for row in rows if row.direction in ("forward", "forward+backward")]
    if not rows:
        return []
    others = [name for name in OTHERS if any(getattr(row, f"x_{name}") is not None for row in rows)]
    read = any(row.of_read is not None for row in rows)
    heads = ["", "sizes", "dtype", "ms", "GB", "GB/s", "of copy", *(["of read"] if read else [])]
    heads += [f"x {NAMES[name]}" for name in others] + ["MB ours", *(f"MB {NAMES[name]}" for name in others)]
    ran = sorted({row.implementation for row in rows if row.implementation})
    lines = [f"### `{kernel}`", "", f"Ours in {' and '.join(ran) or 'nothing'}.", ""]
    lines += ["| " + " | ".join(heads) + " |", "|---" * 3 + "|---:" * (len(heads) - 3) + "|"]
    for row in rows:
        what = ", ".join(part for part in (row.form, row.direction, row.memory) if part)
        cells = [f"**{what}**" if row.large else what, _sizes(row), row.dtype]
        cells += [number(row.ms) or "error", number(row.gb), number(row.gb_s), ratio(row.of_copy)]
        cells += [ratio(row.of_read)] if read else []
        cells += [ratio(getattr(row, f"x_{name}")) for name in others]
        cells += [number(getattr(row, f"peak_{name}_mb")) for name in ("ours", *others)]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _decode(rows: Sequence[Row]) -> list[str]:
    rows = [row for row in rows if row.direction in ("host", "graph")]
    if not rows:
        return []
    lines = ["### One token", ""]
    lines += [
        "What a call costs where the device has next to nothing to do, in microseconds: the host's time, and on a GPU a"
    ]
    lines += ["call's share of a CUDA graph of 32 calls that is replayed.", ""]
    lines += ["| | sizes | measured | ours | plain torch | x plain torch |", "|---|---|---|---:|---:|---:|"]
    for row in rows:
        ours = None if row.ms is None else 1e3 * row.ms
        plain = None if ours is None or row.x_eager is None else ours * row.x_eager
        what = {"host": "the host", "graph": "a replayed graph"}[row.direction]
        cells = [
            f"`{row.kernel}` {row.form}",
            _sizes(row),
            what,
            number(ours) or "error",
            number(plain),
            ratio(row.x_eager),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _left(about: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row.error:
            what = f"`{row.kernel}` {row.form} {row.direction} {row.sizes} {row.dtype} {row.memory}".rstrip()
            lines.append(f"- **error**: {what}: {row.error}")
    lines += [f"- not raced: {note}" for note in sorted({row.note for row in rows if row.note})]
    if about.get("left_out"):
        lines.append(
            f"- {len(about['left_out'])} rows were left out by the limit of time: {', '.join(about['left_out'])}"
        )
    return ["### What is missing", "", *lines, ""] if lines else []


def _sizes(row: Row) -> str:
    return " ".join(f"{letter}={thousands(size)}" for letter, size in row.size.items())
