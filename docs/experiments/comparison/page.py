"""docs/comparison.md, from what the scripts printed (docs/results/comparison.json) and the cells written by hand.

python docs/experiments/comparison/page.py
"""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from cells import COLUMNS, READ, README, SEARCHED, WRITTEN, Cell
from searches import OF_SOMETHING_ELSE
from searches import STORED as SEARCHES

DOCS = Path(__file__).parents[2]
HEAD = """# steer beside other libraries

Made by `docs/experiments/comparison/page.py`; do not edit. Checked on {when}, CPU, torch {torch}; each library the
newest on PyPI that day, in an environment of its own (pyvene, repsteer and PEFT in one, without pyvene's notebook
widgets), by a script that uses it as its documentation says
([what they ask](experiments/comparison/probes.py), [what they printed](results/comparison.json)).

- *run*: it was done, and the result is that of plain torch: an edited head, the same as that head's columns zeroed in
  the weights, to 1e-5; a vector at chosen positions, the very tokens that a hand-written hook gives. Models are eight
  tiny ones with random weights: {kinds}. All but the rows that count them were run on LLaVA, or, where a library
  cannot run that, on InternVL (pyvene, repsteer). Where a run failed, what it said is below.
- *read*: a link is to the very file, at the commit that was read, or to the library's page on PyPI at that version
  (what its wheel says of itself); a path is a file of the version in the column's head, as pip installs it. Such a cell
  says what its authors or their code say; it was not run.
- *searched*: the source of that version was searched for what such a thing would have to be called
  ([patterns and lines](results/comparison_searches.json)). Where lines were found, they are of what stands beside it.
- **Bold**: the one to take for a user who wants just that, where that is not steer.
- AISteer360 was read and not run: it is not on PyPI (`ai-steer360`, `aisteer360` and `aisteer` were tried), and its
  0.3.0 asks for transformers < 5. Its files were read at several commits, those linked.
- TransformerLens ran with torch {lens}: where the processor of a model that sees does not load, it calls pip to install
  torchvision, and pip brought that torch along. `transformers-stream-generator`, which it asks for, was not to be had
  and not missed. It wraps a model for good: what "afterwards" is compared with is the wrapped model.
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
    ("transformer_lens", "heads"): "under its own eager attention; the others have no adapter",
    ("transformer_lens", "bias_scores"): "in its own eager attention, which takes the place of SDPA",
    ("transformer_lens", "add_padded"): "the user counts padding",
    ("transformer_lens", "fail_inside"): "the wrapped model; the one that was handed in stays wrapped",
    ("pyvene", "heads"): "the user names each path; LLaVA works once, if it had not run, and then not at all",
    ("nnsight", "add_padded"): "the user counts padding",
    ("pyvene", "add_padded"): "the user counts padding",
    ("nnsight", "bias_scores"): "by `.source`, a mask for each head",
    ("pyvene", "fail_inside"): "but every hook of the model is taken away, transformers' own too",
    ("repsteer", "heads"): "all that its list has; by a projection, its check of widths switched off",
    ("repsteer", "add_padded"): "by a selector of one's own; its indices are columns of the batch",
    ("kvpress", "prune_heads"): "dropped keys are masked and stay in memory",
}
OUTSIDE = ("kvpress", "peft")  # the rows that they did not run are not their job
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


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def stored() -> dict[str, dict[str, Any]]:
    """What the scripts printed, by column."""
    return read(DOCS / "results" / "comparison.json")


def ran(column: str, key: str, found: dict[str, dict[str, Any]]) -> str:
    """A cell of a row that is run."""
    report = found.get(column, {"probes": {}})
    if (column, key) in READ:
        return written(READ[column, key], column, key, found)
    if key == "heads" and "heads" in report:
        passed = [one["passed"] for one in report["heads"].values()]
        words = f"run: {sum(passed)} of {len(passed)}"
    elif key in report["probes"]:
        one = report["probes"][key]
        words = "run: yes" if one["passed"] else "run: **no**"
        if key.startswith("prune"):
            models = one["detail"].split("; not ")[0].removeprefix("bytes kept: ")
            words = f"run: {0 if 'none' in models else len(models.split(','))}"
    else:
        return "not its job" if column in OUTSIDE else "not run"
    note = NOTES.get((column, key))
    return f"{words}; {note}" if note else words


def written(cell: Cell, column: str, title: str, found: dict[str, dict[str, Any]]) -> str:
    """A cell that a person wrote, with how it is known."""
    words, *sources = cell
    if words.startswith("run: "):
        one, (note,) = found[column]["probes"][words.removeprefix("run: ")], sources
        outcome = one["detail"] if not note else "yes" if one["passed"] else "**no**"
        return f"run: {outcome}; {note}" if note else f"run: {outcome}"
    known = known_by(sources, column, title, found)
    return f"{words} ({known})" if known else words


def known_by(sources: list[str], column: str, title: str, found: dict[str, dict[str, Any]]) -> str:
    """How a cell is known: links, then paths in the version that was run."""
    links, paths = [], []
    for source in sources:
        if source == SEARCHED:
            lines = read(SEARCHES)[column]["rows"][title]["lines"]
            what = OF_SOMETHING_ELSE.get((column, title))
            other = f": {lines} line{'s' * (lines > 1)}, {what}" if lines else ""
            links.append(f"[searched](results/comparison_searches.json){other}")
        elif source == README:
            links.append(f"[read](https://pypi.org/project/{found[column]['library']}/{found[column]['version']}/)")
        elif source.endswith(".md") or source.startswith("https://"):
            links.append(f"[read]({source})")
        else:
            paths.append(f"`{source}`")
    return ", ".join([*links, *([f"read: {', '.join(paths)}"] if paths else [])])


def overhead() -> dict[str, str]:
    """By column: a generation's time beside the bare one of the same round, the median."""
    times = read(DOCS / "overhead.json")["models"]["llama-135m"]["generation"]
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
        asks = next(r for r in asked if re.match(r"transformers(?!-)", r))
        table["transformers it ran with"].append(f"{one.get('transformers', 'not run')} (asks for `{asks}`)")
        known = {"kvpress": "Apache-2.0", "peft": "Apache-2.0", "aisteer360": "Apache-2.0", "pyvene": "Apache-2.0"}
        table["licence"].append(known.get(column) or one["licence"])
    for title, key in RUN_ROWS.items():
        table[title] = [ran(column, key, found) for column in COLUMNS]
    costs = overhead()
    table["time of a token, to the bare model"] = [costs.get(column, "not timed") for column in COLUMNS]
    for title, cells in WRITTEN.items():
        table[title] = [written(cell, column, title, found) for column, cell in zip(COLUMNS, cells, strict=True)]
    return table


def markdown(table: dict[str, list[str]]) -> str:
    names = {"steer": "**steer**", "transformer_lens": "TransformerLens", "aisteer360": "AISteer360", "peft": "PEFT"}
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
    lens = found["transformer_lens"]["torch"]
    head = HEAD.format(when=about["when"], torch=about["torch"], kinds=", ".join(about["heads"]), lens=lens)
    lists = (
        "## Where another is the better choice\n\n"
        "- Weights may change, or a fit needs many GPUs: **PEFT**.\n"
        "- An edit that no method here foresees, or a model too large for you: **nnsight**.\n"
        "- The mechanism of a model, every activation by one set of names: **TransformerLens**.\n"
        "- Interventions that are trained to find causal structure: **pyvene**.\n"
        "- Long text contexts and the newest rules of pruning: **kvpress**.\n"
        "- Prompts, weights and decoding compared in one benchmark of text models: **AISteer360**.\n"
    )
    return "\n".join([head, markdown(rows()), lists, "## What failed, in its own words\n", evidence(found)])


def short() -> str:
    """The rows for the front page, without how their cells are known."""
    every = rows()
    table = markdown({title: every[title] for title in SHORT})
    bare = re.sub(r" \((?:\[(?:read|searched)\]\(|read: `)[^|]*\)(?= \|)", "", table)  # the last bracket of a cell
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", bare)


if __name__ == "__main__":
    (DOCS / "comparison.md").write_text(page(), encoding="utf-8")
