"""docs/architectures.md: one row for each architecture, from its map and from the reports of its tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from _test_reports import Reports

from steer.model_map import Attention, ModelMap, Tower

HEADS = ("class", "model type", "parameters", "towers found", "map", "head edit, text", "head edit, vision")
MAPS, EDITS = "test_maps.py", "test_head_edit.py"
LIMIT_SECONDS = 3.0


@dataclass(frozen=True)
class Row:
    """One architecture: what was found and in how long, or why it could not be built."""

    name: str
    why_not: str = ""
    map: ModelMap | None = None
    seconds: float = 0.0


def page(rows: Sequence[Row], reports: Reports, largest: Row, overrides: int) -> str:
    """The whole page. `largest` holds the time to print, `overrides` is how many classes have data of their own."""
    cells = [_cells(row, reports) for row in rows]
    table = ["| " + " | ".join(line) + " |" for line in (HEADS, ["---"] * len(HEADS), *cells)]
    return "\n".join([_intro(cells, reports, overrides), "", *table, "", _timing(largest)]) + "\n"


def found_cells(model_map: ModelMap) -> list[str]:
    """What the map alone says: model type, parameters and towers."""
    towers = "; ".join(_tower(tower) for tower in model_map.towers.values())
    return [model_map.model_type, _count(model_map.num_parameters), towers]


def _cells(row: Row, reports: Reports) -> list[str]:
    if row.map is None:
        return [row.name, "", "", "", *[f"— {row.why_not}"] * 3]
    edits = [reports.cell(EDITS, row.name, kind) for kind in ("text", "vision")]
    return [row.name, *found_cells(row.map), reports.cell(MAPS, row.name), *edits]


def _tower(tower: Tower) -> str:
    """`text 4096: 32 × 32/8 × 128`: the width, then for each kind of layer how many, heads/KV heads, width of one."""
    counts: dict[str, int] = {}
    for layer in tower.layers:
        mixers = [(layer.attention, ""), (layer.cross_attention, "cross ")]
        kinds = [prefix + _mixer(mixer) for mixer, prefix in mixers if mixer is not None] or ["no mixer"]
        for kind in kinds:
            counts[kind] = counts.get(kind, 0) + 1
    return f"{tower.name} {tower.width}: " + ", ".join(f"{count} × {kind}" for kind, count in counts.items())


def _mixer(mixer: Attention) -> str:
    if mixer.kind != "softmax":
        return mixer.kind
    heads = f"{mixer.num_heads}/{mixer.num_kv_heads}" if mixer.num_kv_heads != mixer.num_heads else f"{mixer.num_heads}"
    head_dim = mixer.head_dim or "?"
    width = f"{head_dim}/{mixer.value_dim}" if mixer.value_dim != mixer.head_dim else f"{head_dim}"
    return f"{heads} × {width}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:,.4g} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"


def _intro(cells: list[list[str]], reports: Reports, overrides: int) -> str:
    built = [line for line in cells if line[1]]
    passed = {head: sum(line[HEADS.index(head)] == "pass" for line in built) for head in HEADS[-3:]}
    failed = sum("**failed**" in cell for line in cells for cell in line)
    off, effect = max(reports.numbers("off by"), default=0.0), min(reports.numbers("effect"), default=0.0)
    return f"""# Architectures

Made by `python docs/experiments/architectures.py`; not to be edited. transformers {transformers.__version__},
torch {torch.__version__.partition("+")[0]}.

{len(cells)} classes: all of transformers' image-text-to-text and zero-shot-image-classification mappings. {len(built)}
of them were built, the others need a package that was not installed. **{failed} results failed.**

- **towers found**: what `steer.inspect` sees at full size on the meta device. `text 4096: 32 × 32/8 × 128` is a
  residual stream of width 4096 and 32 layers with 32 query heads on 8 KV heads of width 128. `192/128` are the widths
  of queries and of values; `?` is a width that depends on the picture.
- **map**, {passed[HEADS[4]]} pass: the map is what attention receives in a real forward of the same model, recorded
  without steer (`tests/architectures/{MAPS}`).
- **head edit**, {passed[HEADS[5]]} pass in text and {passed[HEADS[6]]} in vision: at tiny size, with random weights on
  CPU, `Scale(0)` of one head at `head_out` gives the outputs of the model in whose output projection that head's
  columns are zero; in one layer of each kind in each tower, not the first where there is a second. To pass, the two
  may be 1e-5 apart, the edit must move the outputs by 1e-3 or more, and after the session they must be bit for bit
  what they were before (`tests/architectures/{EDITS}`). They were at most {off:.1g} apart; the edits moved the outputs
  by {effect:.1g} or more.
- The tiny models come from one shrinker, which knows the exceptions of {overrides} classes (`TINY` in
  `steer/testing/_configs.py`); their inputs are found by trying."""


def _timing(largest: Row) -> str:
    assert largest.map is not None
    verdict = "under" if largest.seconds < LIMIT_SECONDS else "**failed**, not under"
    return (
        f"The largest, {largest.name} with {_count(largest.map.num_parameters)} parameters, was mapped in "
        f"{largest.seconds:.1f} s on one core: {verdict} the {LIMIT_SECONDS:.0f} s asked for. It is the middle of "
        "a few runs; building the empty model is not counted."
    )
