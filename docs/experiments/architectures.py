"""What steer finds in every architecture of transformers, and which tests it passes: docs/architectures.md.

    python docs/experiments/architectures.py            # about three minutes on one core; writes the page
    python docs/experiments/architectures.py --quick    # a few classes, printed

Models are mapped at full size on the meta device. The results are those of the tests in tests/architectures, which
pytest runs here; there is no randomness but the tests' own seed 0.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from statistics import median

import torch
import transformers
from _architectures_page import EDITS, MAPS, Row, page
from _test_reports import run

import steer
from steer.testing._configs import TINY, every_class, full_model, missing

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architectures.md"
QUICK = ("LlavaForConditionalGeneration", "MllamaForConditionalGeneration", "CLIPModel")
REPEATS = 5


def find(cls: type[torch.nn.Module]) -> Row:
    """Map the class at full size."""
    why = missing(cls.__name__)
    if why:
        return Row(cls.__name__, why)
    model = full_model(cls)
    start = time.perf_counter()
    found = steer.inspect(model)
    return Row(cls.__name__, "", found, time.perf_counter() - start)


def time_largest(rows: list[Row]) -> Row:
    """The row of the largest model, with the middle time of several runs."""
    largest = max((row for row in rows if row.map is not None), key=lambda row: row.map.num_parameters)  # type: ignore[union-attr]
    cls = next(cls for cls in every_class() if cls.__name__ == largest.name)
    return Row(largest.name, "", largest.map, median(find(cls).seconds for _ in range(REPEATS)))


def main() -> None:
    """Map, test, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few classes, printed and not written")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    files = [ROOT / "tests" / "architectures" / name for name in (MAPS, EDITS)]
    reports = run(ROOT, [file for file in files if file.exists()], QUICK if quick else ())
    rows = [find(cls) for cls in every_class() if not quick or cls.__name__ in QUICK]
    made = page(rows, reports, time_largest(rows), len(TINY))
    if not quick:
        unfinished = PAGE.with_suffix(".part")
        unfinished.write_text(made)
        unfinished.replace(PAGE)
    print(made)


if __name__ == "__main__":
    main()
