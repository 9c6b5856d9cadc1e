"""Which sites of which models can be folded into biases: the table of docs/serving.md.

    python docs/experiments/foldable.py            # a few minutes on one core; writes the table into the page
    python docs/experiments/foldable.py --quick    # a few classes, printed

Every class of transformers' causal-LM and image-text-to-text mappings is built tiny with random weights (seed 0), and
one vector is folded at each site of its text tower. `steer.fold` tries each result against a session, so that a "yes"
is a forward of the tiny model and not only a bias that exists.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

import steer
from steer.testing._shrink import shrink
from steer.testing._tiny import randomise, tiny_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"
START, END = "<!-- made by docs/experiments/foldable.py -->", "<!-- end -->"
SITES = ("head_out", "attn_out", "mlp_out", "resid_out")
QUICK = ("llama", "qwen2", "qwen3", "gpt2", "gemma2", "granite", "mixtral", "llava", "qwen2_5_vl")
SEED = 0


def classes() -> Iterator[tuple[str, type, Any]]:
    """Model type, config class and model class; the second mapping's builders know its classes' exceptions."""
    for mapping in (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING):
        for config in mapping:
            found = mapping[config]
            yield config.model_type, config, found[0] if isinstance(found, tuple) else found


def build(config: Any, cls: Any) -> Any:
    """A tiny model with random weights, in eval mode."""
    if config in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return tiny_model(cls)
    torch.manual_seed(SEED)
    model = cls._from_config(config.from_dict(shrink(config().to_dict()))).float().eval().requires_grad_(False)
    randomise(model)
    return model


def outcome(model: Any, tower: Any, site: str) -> str:
    """`yes`, `yes, <field>`, or why not, in a word or two."""
    widths = {layer.attention.value_dim for layer in tower.layers if layer.attention and layer.attention.value_dim}
    if site == "head_out" and len(widths) != 1:
        return "not tried" if widths else "no such place"
    width = widths.pop() if site == "head_out" else tower.width
    vector = 0.1 * torch.randn(width, generator=torch.Generator().manual_seed(SEED))
    try:
        folded = steer.fold(model, steer.Intervention(getattr(steer.sites, site)(), steer.ops.Add(vector)))
    except steer.SteerError as error:
        return why(str(error))
    fields = " and ".join(f"`{name.rpartition('.')[2]}`" for name in folded.switches)
    return f"yes, {fields}" if fields else "yes"


def why(message: str) -> str:
    """The kind of a refusal."""
    kinds = {
        "no field of the config": "no: no field gives a bias",
        "comes last": "no: norm, scale or sum behind it",
        "stands between": "no: norm, scale or sum behind it",
        "the map has no such branch": "no such place",
        "needs self-attention": "no such place",
        "give inputs=": "not tried",
        "Give inputs=": "not tried",
    }
    return next((kind for words, kind in kinds.items() if words in message), "no: other")


def row(config: Any, cls: Any) -> tuple[str, ...] | None:
    """The outcome at each site; None where the tiny model cannot be built or mapped."""
    # Whatever a constructor or a forward says at a size it was not made for, the class is left out and counted.
    try:
        model = build(config, cls)
        tower = steer.inspect(model).tower()
        return tuple(outcome(model, tower, site) for site in SITES)
    except Exception:
        return None


def table(found: dict[tuple[str, ...], list[str]], left_out: list[str]) -> str:
    """Model types by outcome, those with more that can be folded first."""
    lines = ["| model types | " + " | ".join(f"`{site}`" for site in SITES) + " |", "|---" * (1 + len(SITES)) + "|"]
    for cells in sorted(found, key=lambda cells: (-sum(cell.startswith("yes") for cell in cells), cells)):
        lines.append(f"| {', '.join(sorted(found[cells]))} | {' | '.join(cells)} |")
    count = sum(map(len, found.values()))
    lines += [
        "",
        f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}; {count} model types. "
        f"Left out, because they were not built or not mapped at this size: {', '.join(sorted(left_out)) or 'none'}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Build, fold, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few classes, printed and not written")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    left_out = []
    seen: set[str] = set()
    for kind, config, cls in classes():
        if kind in seen or (quick and kind not in QUICK):
            continue
        seen.add(kind)
        cells = row(config, cls)
        if cells is None:
            left_out.append(kind)
        else:
            found[cells].append(kind)
    made = table(found, left_out)
    print(made)
    if not quick:
        before, _, rest = PAGE.read_text().partition(START)
        PAGE.write_text(f"{before}{START}\n\n{made}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
