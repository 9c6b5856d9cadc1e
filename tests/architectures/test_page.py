"""docs/architectures.md, where that is cheap to check: a row for every class, and maps that are still what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

import steer
from steer.testing._configs import every_class, full_model

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "architectures.md").read_text()
LINES = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
ROWS = {line[0]: line for line in LINES[2:]}
SAMPLED = ("CLIPModel", "Gemma3ForConditionalGeneration", "MllamaForConditionalGeneration")


def made_with_this_transformers() -> bool:
    return f"transformers {transformers.__version__}," in PAGE


@pytest.mark.skipif(not made_with_this_transformers(), reason="the page was made with another transformers")
def test_every_class_has_a_row() -> None:
    assert list(ROWS) == [cls.__name__ for cls in every_class()]


@pytest.mark.skipif(not made_with_this_transformers(), reason="the page was made with another transformers")
@pytest.mark.parametrize("name", SAMPLED)
def test_the_row_says_what_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "experiments"))
    from _architectures_page import found_cells

    cls = next(cls for cls in every_class() if cls.__name__ == name)
    assert ROWS[name][1:4] == found_cells(steer.inspect(full_model(cls)))
