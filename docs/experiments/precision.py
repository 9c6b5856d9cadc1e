"""How far every method in bf16, fp16 and int8 is from fp32: the table of docs/precision.md.

    python docs/experiments/precision.py            # two minutes on one core; writes the table into the page
    python docs/experiments/precision.py --quick    # a few methods, printed

Every method is made on a shipped model that was loaded in the precision, with the recipes of tests/precision (seed 0: 8
examples, two steps or one epoch where it is trained), and compared with the fp32 model that has the same tensors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.precision.precisions import PRECISIONS, TOLERANCE  # noqa: E402
from tests.precision.recipes import RECIPES  # noqa: E402
from tests.precision.subjects import Measured, measured, subject_of  # noqa: E402

PAGE = ROOT / "docs" / "precision.md"
START, END = "<!-- made by docs/experiments/precision.py -->", "<!-- end -->"
QUICK = ("icv", "mimic", "vcd", "snapkv", "coop")


def row(name: str) -> list[str]:
    """A method's cells: in each precision its distance, and the model's own; then how far it moves fp32 logits."""
    found: list[Measured] = []
    for precision in PRECISIONS:
        one = subject_of(name, precision)
        found.append(measured(one, RECIPES[name](one.here.model, one.here.processor, one.examples)))
    cells = [f"{100 * one.far:.2g} ({100 * one.alone:.2g})" for one in found]
    marked = f"`{name}`" + (" *" if found[0].ruled_out else "")
    return [marked, *cells, f"{100 * found[0].effect:.2g}"]


def table(rows: list[list[str]]) -> str:
    """Markdown, with the versions that it holds for."""
    head = ["method", *(f"{name} (model alone)" for name in PRECISIONS), "effect"]
    lines = [head, ["---"] * len(head), *rows]
    limits = ", ".join(f"{name} {100 * TOLERANCE[name]:g} %" for name in PRECISIONS)
    versions = f"torch {torch.__version__.partition('+')[0]}, transformers {transformers.__version__}"
    note = f"Per cent of the norm; tolerances {limits}. {versions}, CPU, one thread. * of probabilities, not of logits."
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}"


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few methods, printed and not written")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    made = table([row(name) for name in (QUICK if quick else sorted(RECIPES))])
    print(made)
    if not quick:
        before, _, rest = PAGE.read_text().partition(START)
        PAGE.write_text(f"{before}{START}\n\n{made}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
