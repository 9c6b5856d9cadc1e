"""The page says what its records say, a claim is judged as its numbers demand, and what is counted is right."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"
SCRIPTS = DOCS / "experiments" / "memory"


@pytest.fixture
def scripts(monkeypatch):
    """The experiment's own modules, by name; another experiment has modules of the same names."""
    names = [path.stem for path in SCRIPTS.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture
def small(scripts):
    """tiny-vlm as shipped, with one context of 8 demonstrations and 12 questions."""
    setting = scripts("settings").Pictures()
    setting.quicken()
    return setting


def test_the_page_is_what_its_records_give(scripts, tmp_path):
    for file in RESULTS.glob("memory*"):
        shutil.copy(file, tmp_path)
    written = scripts("page").write(tmp_path, draw=False)
    assert written == (RESULTS / "memory.md").read_text(encoding="utf-8")
    assert "](memory.png)" in written


def test_every_accuracy_is_that_of_the_answers_kept_with_it_and_every_number_is_possible():
    files = [file.read_text().splitlines() for file in sorted(RESULTS.glob("memory-*.jsonl"))]
    assert len(files) == 2
    for records in ([json.loads(line) for line in lines] for lines in files):
        assert len({one["key"] for one in records}) == len(records)
        for record in records:
            _check(record)


def _check(record: dict) -> None:
    if "right" in record:
        bits = record["right"]
        assert record["accuracy"] == pytest.approx(bits.count("1") / len(bits), abs=1e-6), record["key"]
    for name in ("held_out", "calibration"):
        if name in record:
            assert 0 <= record[name]["mean"] <= record[name]["max"] <= math.log(2) + 1e-6, record["key"]


def test_right_answers_are_those_that_the_model_writes(scripts, small):
    case = scripts("measuring").Case(small, "colour", 8, 0)
    row = scripts("protocol").Row("streaming_llm", "keep", 0.5)
    for memory in (case.whole, case.build(row.method())):
        assert case.measured(memory)["right"] == case.written(memory)["right"]


def test_divergence_is_what_the_library_measures(scripts, small):
    from steer.memory.reading import divergence

    case = scripts("measuring").Case(small, "colour", 8, 0)
    memory = case.build(scripts("protocol").Row("knorm", "keep", 0.5).method())
    held_out = divergence(case.model, case.whole, memory, case.held_out)
    again = divergence(case.model, case.whole, memory, case.again)
    assert case.measured(memory)["held_out"] == pytest.approx(held_out.to_dict(), abs=1e-6)
    assert case.calibration(memory) == pytest.approx(again.to_dict(), abs=1e-6)


def test_a_run_that_was_cut_off_goes_on_and_repeats_nothing(scripts, small, tmp_path):
    runs = scripts("runs")
    small.ablation = list
    small.with_vector = lambda task: False
    book = runs.Book(tmp_path / "r.jsonl")
    runs.Runs(small, book).all()
    whole = (tmp_path / "r.jsonl").read_text()
    (tmp_path / "r.jsonl").write_text("".join(whole.splitlines(keepends=True)[:-1]))
    runs.Runs(small, runs.Book(tmp_path / "r.jsonl")).all()
    first, second = ([json.loads(line) for line in text.splitlines()] for text in (whole, book.path.read_text()))
    assert second[:-1] == first[:-1]
    assert second[-1]["key"] == first[-1]["key"]
    assert second[-1]["right"] == first[-1]["right"]


def test_the_most_bytes_alive_are_counted(scripts):
    alive = scripts("peak").Alive()
    weight = torch.ones(100)
    with alive:
        first = torch.zeros(1000)
        view = weight.view(10, 10)
        second = first + 1
        del first
        third = second[:10].clone()
    assert alive.peak == 2 * 4000
    assert alive.largest == 4000
    assert view.shape == (10, 10)
    assert third.shape == (10,)


@pytest.mark.parametrize(
    "points, js, share",
    [
        ([(0.01, 0.4), (0.1, 0.2)], 0.01, 0.4),
        ([(0.01, 0.4), (0.1, 0.2)], math.sqrt(0.001), 0.3),  # half way on a logarithmic scale
        ([(0.01, 0.4), (0.1, 0.2)], 0.6, 0.2),
        ([(0.01, 0.4), (0.1, 0.2)], 0.005, None),
        ([(0.01, 0.4), (0.05, 0.9), (0.1, 0.2)], math.sqrt(0.001), 0.3),  # one that keeps more and loses more
        ([], 0.1, None),
    ],
)
def test_shares_at_equal_divergence(scripts, points, js, share):
    found = scripts("claims").share_at(points, js)
    assert found is None if share is None else found == pytest.approx(share)


@pytest.mark.parametrize(
    "found, word",
    [
        ((-0.1, -0.2, -0.05), "held"),
        ((-0.1, -0.2, 0.05), "failed: not shown"),
        ((0.1, 0.05, 0.2), "failed"),
    ],
)
def test_a_claim_holds_only_where_its_whole_interval_does(scripts, found, word):
    assert scripts("claims").judge_below(found) == word


def _written(path: Path, rows: dict[str, dict]) -> Path:
    path.write_text("\n".join(json.dumps({"key": key, **record}) for key, record in rows.items()))
    return path


def _bound(ours: float, published: float) -> dict[str, dict]:
    held = {"emloc-end-to-end": ours, "emloc-published": published}
    return {
        f"A/colour/16/{family}:delta=0.02/{seed}": {"right": "1", "held_out": {"mean": js}}
        for family, js in held.items()
        for seed in range(3)
    }


@pytest.mark.parametrize("ours, word", [(0.019, "held"), (0.021, "failed")])
def test_one_memory_above_the_bound_is_one_too_many(scripts, tmp_path, ours, word):
    rows = _bound(0.001, 0.5) | {"A/colour/32/emloc-end-to-end:delta=0.02/0": {"held_out": {"mean": ours}}}
    records = scripts("records").Records(_written(tmp_path / "r.jsonl", rows))
    verdict, numbers = scripts("claims")._bound({"A": records})
    assert verdict == word
    assert "worst 25.00 x delta" in numbers


def test_claims_without_records_are_not_run(scripts, tmp_path):
    records = scripts("records").Records(tmp_path / "nothing.jsonl")
    for settings in ({}, {"A": records, "B": records}):
        assert {word for _, word, _ in scripts("claims").verdicts(settings)} == {"not run"}


def test_intervals_cover_questions_and_samplings(scripts):
    half = [np.array([1.0, 0.0] * 50)] * 3
    mean, low, high = scripts("records").interval([half])
    assert mean == 0.5
    # Three times 100 questions of mean 1/2, samplings alike: 0.5 +- 0.057
    assert (low, high) == pytest.approx((0.443, 0.557), abs=0.02)
