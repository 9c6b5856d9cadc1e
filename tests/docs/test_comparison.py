"""docs/comparison.md is what was printed and written; probes find out a library that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .experiment_scripts import modules

DOCS = Path(__file__).parents[2] / "docs"
Loader = Callable[[str], Any]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Loader]:
    with modules("comparison") as load:
        yield load


def test_the_page_is_as_its_script_makes_it(scripts: Loader) -> None:
    assert (DOCS / "comparison.md").read_text(encoding="utf-8") == scripts("page").page()


def test_every_cell_that_was_read_says_where(scripts: Loader) -> None:
    cells = scripts("cells")
    for title, row in cells.WRITTEN.items():
        assert len(row) == len(cells.COLUMNS), title
        assert {source for _, source in row if source} <= set(cells.SOURCES), title


def test_there_are_rows_in_which_another_library_is_the_one_to_take(scripts: Loader) -> None:
    lost = [
        title for title, row in scripts("page").rows().items() if any("**" in c and "no**" not in c for c in row[1:])
    ]
    assert len(lost) >= 5


def test_steer_still_does_what_was_printed(scripts: Loader) -> None:
    """Its probes but for the counts over models, which tests/architectures has for all."""
    probes, steer = scripts("probes"), scripts("run_steer").LIBRARY
    for probe in probes.PROBES:
        passed, detail = probe(steer)
        assert passed, f"{probe.__name__}: {detail}"


@pytest.mark.parametrize("probe", ("add_beams", "add_generated", "add_rows", "add_padded", "bias_scores"))
def test_a_library_that_does_nothing_is_found_out(scripts: Loader, probe: str) -> None:
    probes = scripts("probes")
    ways = {
        "add_beams": lambda one: one.write(num_beams=3),
        "add_generated": lambda one: one.write(),
        "add_rows": lambda one: one.write(),
        "add_padded": lambda one, batch: one.logits(**batch),
        "bias_scores": lambda one: one.logits(),
    }
    passed, detail = getattr(probes, probe)(probes.Library("none", **{probe: ways[probe]}))
    assert not passed
    assert "shows nothing" not in detail


def test_an_edit_of_another_head_is_found_out(scripts: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    probes, run = scripts("probes"), scripts("run_steer")
    monkeypatch.setattr(run, "HEAD", 2)
    monkeypatch.setattr(probes, "KINDS", {"LLaVA": probes.KINDS["LLaVA"]})
    assert not probes.heads(run.LIBRARY)["LLaVA"]["passed"]
