"""docs/results/comparison_searches.json: what a search of every library's source found for each cell that says "no".

    python searches.py nnsight=FOLDER ...

FOLDER is where the wheel of the version that was run is unpacked. Files that cells name must be there, too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cells import COLUMNS, READ, README, SEARCHED, WRITTEN

STORED = Path(__file__).parents[2] / "results" / "comparison_searches.json"
_DROPPED = r"evict|cache.*(prun|compress)|(prun|compress).*cache|\bpress\b"
# By row: what such a thing would have to say somewhere in its source. Case does not count.
PATTERNS = {
    "runs on models that others host": r"\bndif\b|api_key|inference.?endpoint|remote=",
    "adapters on weights (LoRA) in these 8": r"\blora\b|\bpeft\b",
    "training at scale": r"accelerat|fsdp|deepspeed|DistributedDataParallel|\bTrainer\b",
    "prompt learning for CLIP": r"\bcoop\b|prompt.?learn|prompt.?tun|soft.?prompt",
    "hallucination methods": r"hallucinat|contrastive.?decod|\bpope\b",
    "presses, or rules of pruning": _DROPPED,
    "checkpoints that run without it": r"save_pretrained|merge_and_unload|save_model",
    "prune": _DROPPED,
    "prune_heads": _DROPPED,
}
# What the lines are that were found all the same, looked at one by one.
OF_SOMETHING_ELSE = {
    ("transformer_lens", "adapters on weights (LoRA) in these 8"): "parts of models and a test model's name",
    ("nnsight", "prompt learning for CLIP"): "what it refuses",
    ("transformer_lens", "hallucination methods"): "a remark on judging text",
    ("nnsight", "presses, or rules of pruning"): "its table of sources",
    ("nnsight", "prune"): "its table of sources",
    ("nnsight", "prune_heads"): "its table of sources",
    ("transformer_lens", "presses, or rules of pruning"): "keys to press",
    ("transformer_lens", "prune"): "keys to press",
    ("transformer_lens", "prune_heads"): "keys to press",
    ("pyvene", "checkpoints that run without it"): "its configuration",
    ("kvpress", "checkpoints that run without it"): "a press's statistics",
    ("transformer_lens", "checkpoints that run without it"): "a comment",
}


def cells() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Column, row and sources of every cell that has sources."""
    for title, row in WRITTEN.items():
        for column, (words, *sources) in zip(COLUMNS, row, strict=True):
            if not words.startswith("run: "):
                yield column, title, tuple(sources)
    for (column, key), (_, *sources) in READ.items():
        yield column, key, tuple(sources)


def files(column: str) -> set[str]:
    """What cells cite of the library's own files."""
    cited = {source for name, _, sources in cells() if name == column for source in sources}
    return {one for one in cited if one not in (README, SEARCHED) and not one.startswith("https://")}


def found(folder: Path, pattern: str) -> list[str]:
    """Lines of Python that match, each as path:number."""
    lines = []
    for path in sorted(folder.rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if re.search(pattern, line, re.IGNORECASE):
                lines.append(f"{path.relative_to(folder)}:{number}")
    return lines


def searched(column: str, folder: Path) -> dict[str, Any]:
    missing = sorted(name for name in files(column) if not (folder / name).is_file())
    if missing:
        raise SystemExit(f"{column}: {', '.join(missing)} cited, not in {folder.name}")
    (about,) = folder.glob("*.dist-info/METADATA")
    version = next(line for line in about.read_text(encoding="utf-8").splitlines() if line.startswith("Version: "))
    rows = {}
    for name, title, sources in cells():
        if name == column and SEARCHED in sources:
            lines = found(folder, PATTERNS[title])
            rows[title] = {"pattern": PATTERNS[title], "lines": len(lines), "found": lines[:20]}
    return {
        "version": version.removeprefix("Version: "),
        "files": len(list(folder.rglob("*.py"))),
        "cited": sorted(files(column)),
        "rows": rows,
    }


def main(given: list[str]) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    for name, folder in (one.split("=", 1) for one in given):
        stored[name] = searched(name, Path(folder))
    new = STORED.with_suffix(".new")
    new.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n", encoding="utf-8")
    new.replace(STORED)


if __name__ == "__main__":
    main(sys.argv[1:])
