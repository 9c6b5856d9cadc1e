"""docs/methods.md: every method that steer ships, what for, when not, and what it costs.

What a method does and its paper come from `steer.methods()`; when to take it, and when not, from methods.json beside
this file, by hand; what a fit and a query cost from the tables of the results pages.

    python docs/experiments/methods.py
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import steer
from steer.registry import MethodInfo

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "results"
WHEN = Path(__file__).with_name("methods.json")

HEAD = """# Every method: when, when not, what it costs, where from

Made by `python docs/experiments/methods.py`; do not edit. The two columns of advice are written by hand in
[methods.json](experiments/methods.json), *not when* mostly from what failed on our results pages; the rest is read
from the plugins and from the tables of those pages.

- **Fit**: *none*; *forwards*, the model only runs; *closed form*, a mean, a principal component or a linear probe of
  what it ran; *gradient*, AdamW or SGD over the method's own numbers. Seconds are of one fit on one core shared with
  other work: A is [tiny-vlm](tiny-vlm.md) on pictures and B SmolLM2-135M on words ([vectors](results/vectors.md)), C
  tiny-clip with 16 pictures a class ([prompts](results/prompts.md)), M a memory of 64 pictures
  ([memory](results/memory.md)). Larger models were not timed.
- **A query**: what it costs beside the model alone, in words, and times the bare query's time where that was measured
  (S: a decoded token on [tiny-scenes](results/reliability.md), where the fixed cost of a session weighs most).
- **Models**: *writes*, whatever generates text, encoder-decoders too; *registry*, the same, where attention goes
  through transformers' registry (BLIP's text half does not); *image*, the same, where image tokens are among
  the keys, so no models that see by cross-attention (Mllama); *cache*, whatever keeps a growing cache, of
  encoder-decoders the decoder's; *scores*, two-stream models such as CLIP and SigLIP.
"""
PLUGINS = {
    "vectors": ("Demonstrations without their tokens", "vectors.md", "results/vectors.md"),
    "prompts": ("Prompts and adapters for CLIP-like models", "prompts.md", "results/prompts.md"),
    "memory": ("Memories and pruned caches", "memory.md", "results/memory.md"),
    "attention": ("Where a model attends", "attention.md", "results/reliability.md"),
}


@dataclass(frozen=True)
class Advice:
    """What is written by hand about one method."""

    take: str
    leave: str
    fit: str
    query: str
    models: str


def advice() -> dict[str, Advice]:
    """By method.

    Raises:
        SystemExit: a shipped method has no entry, or an entry has no method.
    """
    written = {name: Advice(*row) for name, row in json.loads(WHEN.read_text(encoding="utf-8")).items()}
    wrong = set(written) ^ set(shipped())
    if wrong:
        raise SystemExit(f"{WHEN.name} and steer.methods() differ in: {', '.join(sorted(wrong))}")
    return written


def shipped() -> dict[str, MethodInfo]:
    """The methods of this distribution; a stranger's plugin may be installed as well."""
    return {name: info for name, info in steer.methods().items() if info.plugin in PLUGINS}


def table(page: str, under: str, column: str, nth: int = 0) -> dict[str, str]:
    """A column by its rows' first cells, of the first table with such a column below a heading, the nth of its name."""
    text = (RESULTS / page).read_text(encoding="utf-8").split(f"\n{under}\n")[nth + 1]
    block = next(block for block in map(str.strip, text.split("\n\n")) if block[:1] == "|" and column in block)
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in block.splitlines()]
    at = rows[0].index(column)
    return {row[0]: row[at] for row in rows[2:] if len(row) > at and row[at] not in ("-", "")}


def measured() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """By method: what fits took, and the times of a query, each with the setting's letter."""
    fits: dict[str, list[str]] = {}
    queries: dict[str, list[str]] = {}

    def note(found: dict[str, list[str]], rows: dict[str, str], form: str) -> None:
        for name, value in rows.items():
            found.setdefault(name, []).append(form.format(value))

    for nth, letter in enumerate("AB"):
        note(fits, table("vectors.md", "### What it costs", "s to fit", nth), letter + " {} s")
        note(queries, table("vectors.md", "### What it costs", "time / bare", nth), letter + " {} x")
    note(fits, table("prompts.md", "## Base and new classes", "fit, s"), "C {} s")
    builds = table("memory.md", "### Under a bound", "build s")
    note(fits, {"emloc": builds["emloc:delta=0.02"]}, "M {} s")
    note(queries, table("reliability.md", "## Objects that are not there", TOKEN), "S {} x")
    for shots in ("icl-8", "icl-16"):
        queries.setdefault("icl", []).extend(f"{one} ({shots[4:]} shots)" for one in queries.pop(shots))
    return fits, queries


TOKEN = "time for a token, the model alone is 1"


def page() -> str:
    """The page, from what is installed and on disk."""
    written, (fits, queries) = advice(), measured()
    parts = [HEAD]
    for plugin, (title, guide, results) in PLUGINS.items():
        parts.append(f"## {title}\n\n[Guide]({guide}), [results]({results}).\n")
        rows = []
        for name, info in shipped().items():
            if info.plugin != plugin:
                continue
            one = written[name]
            fit = one.fit + "".join(f"<br>{value}" for value in fits.get(name, []))
            query = one.query + "".join(f"<br>{value}" for value in queries.get(name, []))
            what = info.summary[0].upper() + info.summary[1:].rstrip(".")
            paper = f"[paper]({info.paper})" if "arxiv" in info.paper else f"[source]({info.paper})"
            rows.append((f"`{name}`", what, one.take, one.leave, fit, query, one.models, paper))
        parts.append(
            _markdown(("method", "what", "take it when", "not when", "fit", "a query", "models", "from"), rows)
        )
    return "\n".join(parts)


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = page()
    (DOCS / "methods.md").write_text(text, encoding="utf-8")
    print(text)
