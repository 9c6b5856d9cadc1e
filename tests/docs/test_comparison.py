"""docs/comparison.md is what was printed and written; probes find out a library that does nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from .experiment_scripts import modules

DOCS = Path(__file__).parents[2] / "docs"
Loader = Callable[[str], Any]


@pytest.fixture(scope="module")
def scripts() -> Iterator[Loader]:
    with modules("comparison") as load:
        yield load


def test_the_page_is_as_its_script_makes_it(scripts: Loader) -> None:
    assert (DOCS / "comparison.md").read_text(encoding="utf-8") == scripts("page").page()


def test_every_cell_says_how_it_is_known(scripts: Loader) -> None:
    """But for our own column and jobs that are no library's: a run, a source, or the words that it was not checked."""
    cells = scripts("cells")
    for title, row in cells.WRITTEN.items():
        assert len(row) == len(cells.COLUMNS), title
        for column, (words, *sources) in zip(cells.COLUMNS, row, strict=True):
            known = sources or words in ("not its job", "not checked")
            assert known or column == "steer", f"{title}, {column}: {words}"


def test_a_link_is_to_a_file_at_a_commit(scripts: Loader) -> None:
    sources = {source for _, _, every in scripts("searches").cells() for source in every}
    links = {source for source in sources if source.startswith("https://")}
    assert len(links) > 10
    for link in links:
        assert re.fullmatch(r"https://github\.com/[^/]+/[^/]+/blob/[0-9a-f]{40}/.+\.\w+", link), link


def test_what_was_read_and_searched_is_the_version_that_was_run(scripts: Loader) -> None:
    """And every file that a cell names was there; every "no" with lines found says what those are."""
    searches, stored = scripts("searches"), scripts("page").stored()
    found = json.loads(searches.STORED.read_text(encoding="utf-8"))
    for column in scripts("cells").COLUMNS:
        if column in ("steer", "aisteer360"):
            continue
        assert found[column]["version"] == stored[column]["version"], column
        assert set(found[column]["cited"]) == searches.files(column), column
        asked = {title for name, title, sources in searches.cells() if name == column and "SEARCHED" in sources}
        assert set(found[column]["rows"]) == asked, column
        for title, one in found[column]["rows"].items():
            assert one["pattern"] == searches.PATTERNS[title], (column, title)
            assert bool(one["lines"]) == ((column, title) in searches.OF_SOMETHING_ELSE), (column, title)


def test_a_search_finds_what_is_there_and_a_file_that_is_not_is_refused(scripts: Loader, tmp_path: Path) -> None:
    searches = scripts("searches")
    (tmp_path / "a.py").write_text("x = 1\nclass CoOp: ...  # Prompt-Learning\n", encoding="utf-8")
    assert searches.found(tmp_path, searches.PATTERNS["prompt learning for CLIP"]) == ["a.py:2"]
    with pytest.raises(SystemExit, match=r"pyvene/models/interventions\.py"):
        searches.searched("pyvene", tmp_path)


def test_there_are_rows_in_which_another_library_is_the_one_to_take(scripts: Loader) -> None:
    lost = [
        title for title, row in scripts("page").rows().items() if any("**" in c and "**no**" not in c for c in row[1:])
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


def test_a_model_that_is_changed_for_good_is_judged_as_it_then_is(
    scripts: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The truth is that of the model as it was; what stays changed is said."""
    probes, run = scripts("probes"), scripts("run_steer")
    monkeypatch.setattr(probes, "KINDS", {"LLaVA": probes.KINDS["LLaVA"]})

    def nudge(one: Any) -> None:
        with torch.no_grad():
            one.model.lm_head.weight[0] += 1e-3

    found = probes.heads(replace(run.LIBRARY, convert=nudge))["LLaVA"]
    assert not found["passed"]
    assert "afterwards bit for bit as before" in found["detail"]
    assert "stays changed, by" in found["detail"]
