"""docs/comparison.md, from what the scripts printed (docs/results/comparison.json) and the cells written by hand.

python docs/experiments/comparison/page.py
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from cells import COLUMNS, SOURCES, WRITTEN

DOCS = Path(__file__).parents[2]
HEAD = """# steer beside other libraries

Made by `docs/experiments/comparison/page.py`; do not edit. Checked on {when}, CPU, torch {torch}; each library the
newest on PyPI that day, in an environment of its own, by a script that uses it as its documentation says
([what they ask](experiments/comparison/probes.py), [what they printed](results/comparison.json)).

- *run*: it was done, and the result is that of plain torch: an edited head, the same as that head's columns zeroed in
  the weights, to 1e-5; a vector at chosen positions, the very tokens that a hand-written hook gives. Models are eight
  tiny ones with random weights: {kinds}. All but the rows that count them were run on LLaVA, or, where a library
  cannot run that, on InternVL (pyvene, repsteer). Where a run failed, what it said is below.
- A link says where it was read. "no" without one: nothing of the kind in what was read.
- **Bold**: the one to take for a user who wants just that, where that is not steer.
- AISteer360 was read and not run: it is not on PyPI under that name, and its 0.3.0 asks for transformers < 5.
- TransformerLens is missing: no script for it was finished.
- What one sample of tiny models cannot show is how a library does on a large one.
"""
RUN_ROWS = {
    "a head edited under SDPA, of 8 architectures": "heads",
    "scores biased before the softmax, under SDPA": "bias_scores",
    "positions: written tokens only": "add_generated",
    "positions: three rows of the prompt, with a cache": "add_rows",
    "the same rows of a left-padded batch": "add_padded",
    "`generate` with beams": "add_beams",
    "restored after an error inside": "fail_inside",
    "files: no pickles": "save",
    "half of a VLM's cache dropped, of 6": "prune",
    "budgets for each head that free memory, of 6": "prune_heads",
}
# What a cell of a run says beyond yes and no.
NOTES = {
    ("nnsight", "heads"): "the user names each path",
    ("pyvene", "heads"): "the user names each path; LLaVA stops running, see the row on errors",
    ("nnsight", "add_padded"): "the user counts padding",
    ("pyvene", "add_padded"): "the user counts padding",
    ("nnsight", "bias_scores"): "by `.source`, a mask for each head",
    ("pyvene", "fail_inside"): "but every hook of the model is taken away, transformers' own too",
    ("repsteer", "heads"): "two are in its list; their heads can be shifted, by ITI (read), and not scaled",
    ("repsteer", "add_padded"): "an index is a column of the batch",
    ("kvpress", "prune_heads"): "dropped keys are masked and stay in memory",
}
OTHERWISE = {("nnsight", "save"): "saves nothing", ("kvpress", ""): "not its job", ("peft", ""): "not its job"}
OTHERWISE |= {("kvpress", "save"): "saves nothing"}
SHORT = (
    "a head edited under SDPA, of 8 architectures",
    "scores biased before the softmax, under SDPA",
    "the same rows of a left-padded batch",
    "half of a VLM's cache dropped, of 6",
    "time of a token, to the bare model",
    "arbitrary edits between any two lines of a forward",
    "learns vectors",
    "training at scale",
    "prompt learning for CLIP",
    "presses, or rules of pruning",
)


def stored() -> dict[str, dict[str, Any]]:
    """What the scripts printed, by column."""
    return json.loads((DOCS / "results" / "comparison.json").read_text(encoding="utf-8"))


def ran(column: str, key: str, found: dict[str, dict[str, Any]]) -> str:
    """A cell of a run."""
    report = found.get(column)
    if report is None:
        return "not run"
    note = NOTES.get((column, key))
    if key == "heads":
        if "heads" not in report:
            return "not its job"
        passed = [one["passed"] for one in report["heads"].values()]
        words = f"run: {sum(passed)} of {len(passed)}"
    elif key in report["probes"]:
        one = report["probes"][key]
        words = "run: yes" if one["passed"] else "run: **no**"
        if key.startswith("prune"):
            models = one["detail"].split("; not ")[0].removeprefix("bytes kept: ")
            words = f"run: {0 if 'none' in models else len(models.split(','))}"
    else:
        return OTHERWISE.get((column, key)) or OTHERWISE.get((column, ""), "no")
    return f"{words}; {note}" if note else words


def written(cell: tuple[str, str | None], column: str, found: dict[str, dict[str, Any]]) -> str:
    words, source = cell
    if words.startswith("run: "):
        one = found[column]["probes"][words.removeprefix("run: ")]
        if source is None:
            return "run: yes" if one["passed"] else "run: **no**, prompt tuning around the whole model"
        return f"run: {one['detail']}"
    return f"{words} ([read]({SOURCES[source]}))" if source else words


def overhead() -> dict[str, str]:
    """By column: a generation's time beside the bare one of the same round, the median."""
    times = json.loads((DOCS / "overhead.json").read_text(encoding="utf-8"))["models"]["llama-135m"]["generation"]
    rows = {"steer": "steer: residual shift", "nnsight": "nnsight", "repsteer": "repsteer"}
    made = {}
    for column, name in rows.items():
        middle = statistics.median(a / b for a, b in zip(times[name], times["bare"], strict=True))
        made[column] = f"[{middle:.2f} x](overhead.md)"
    return made


def rows() -> dict[str, list[str]]:
    """Every row by its title."""
    found = stored()
    table: dict[str, list[str]] = {"version": [], "transformers it ran with": [], "licence": []}
    for column in COLUMNS:
        one = found.get(column, {})
        table["version"].append(one.get("version", "0.3.0"))
        asked = one.get("requires", ["transformers<5.0.0,>=4.52.0"])
        asks = next(r for r in asked if r.startswith("transformers"))
        table["transformers it ran with"].append(f"{one.get('transformers', 'not run')} (asks for `{asks}`)")
        known = {"kvpress": "Apache-2.0", "peft": "Apache-2.0", "aisteer360": "Apache-2.0", "pyvene": "Apache-2.0"}
        table["licence"].append(known.get(column) or one["licence"])
    for title, key in RUN_ROWS.items():
        table[title] = [ran(column, key, found) for column in COLUMNS]
    costs = overhead()
    table["time of a token, to the bare model"] = [costs.get(column, "not timed") for column in COLUMNS]
    for title, cells in WRITTEN.items():
        table[title] = [written(cell, column, found) for column, cell in zip(COLUMNS, cells, strict=True)]
    return table


def markdown(table: dict[str, list[str]]) -> str:
    names = {"steer": "**steer**", "aisteer360": "AISteer360", "peft": "PEFT"}
    lines = [["", *(names.get(column, column) for column in COLUMNS)], ["---"] * (len(COLUMNS) + 1)]
    lines += [[title, *cells] for title, cells in table.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def evidence(found: dict[str, dict[str, Any]]) -> str:
    """What was printed where a run did not give the truth."""
    lines = []
    for column in COLUMNS:
        report = found.get(column, {})
        for name, one in (report.get("heads", {}) | report.get("probes", {})).items():
            if not one["passed"]:
                lines.append(f"- {column} {report['version']}, {name}: `{one['detail'].replace('`', '')}`")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    found = stored()
    about = found["steer"]
    head = HEAD.format(when=about["when"], torch=about["torch"], kinds=", ".join(about["heads"]))
    lists = (
        "## Where another is the better choice\n\n"
        "- Weights may change, or a fit needs many GPUs: **PEFT**.\n"
        "- An edit that no method here foresees, or a model too large for you: **nnsight**.\n"
        "- Interventions that are trained to find causal structure: **pyvene**.\n"
        "- Long text contexts and the newest rules of pruning: **kvpress**.\n"
        "- Prompts, weights and decoding compared in one benchmark of text models: **AISteer360**.\n"
    )
    return "\n".join([head, markdown(rows()), lists, "## What failed, in its own words\n", evidence(found)])


def short() -> str:
    """The rows for the front page, without the links to where cells were read."""
    every = rows()
    table = markdown({title: every[title] for title in SHORT})
    bare = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", re.sub(r" \(\[read\]\([^)]+\)\)", "", table))
    return bare.replace(", see the row on errors", "")  # a row that is on the page only


if __name__ == "__main__":
    (DOCS / "comparison.md").write_text(page(), encoding="utf-8")
