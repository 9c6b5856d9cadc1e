"""docs/results/reliability.md says what its records say; they are of the shipped model, all rows tuned alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steer import zoo
from tests.docs.experiment_scripts import modules

RESULTS = Path(__file__).parents[2] / "docs" / "results"
SLICE = 48


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    torch.set_num_threads(1)
    with modules("reliability") as load:
        yield load


@pytest.fixture(scope="module")
def records() -> dict[str, dict]:
    lines = (RESULTS / "reliability.jsonl").read_text().splitlines()
    found = {one["key"]: one for one in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def test_the_page_is_what_its_records_give(scripts: Any) -> None:
    text = scripts("page").text(scripts("reading").Records(RESULTS / "reliability.jsonl"))
    assert text == (RESULTS / "reliability.md").read_text()
    for name in ("reliability-objects.png", "reliability-risk.png"):
        assert f"]({name})" in text
        assert (RESULTS / name).exists()


def test_the_records_are_of_the_shipped_model_and_scenes(scripts: Any, records: dict[str, dict]) -> None:
    sizes = records["sizes"]
    data = scripts("data").Data("test", sizes["seeds"][-1], sizes["test"])
    asked = data.pope[:SLICE]
    about, said = records[f"asked/{data.seed}"]["pope"], records[f"none/objects/{data.seed}"]["pope"]
    assert about["yes"][:SLICE] == "".join("1" if one.example.answer == "yes" else "0" for one in asked)
    answers = scripts("ways").Way(*zoo.load("tiny-scenes")).yes_or_no(asked)
    assert np.allclose([one.p_yes for one in answers], said["p"][:SLICE], atol=2e-3)


def test_every_row_had_eight_tries_and_kept_the_best_that_does_no_harm(scripts: Any, records: dict[str, dict]) -> None:
    protocol = scripts("protocol")
    for row in protocol.ROWS:
        assert len(row.tries()) == 8
        for aim in row.aims:
            tries = [records[f"{row.name}/{aim}/try/{number}"] for number in range(8)]
            assert [one["choice"] for one in tries] == json.loads(json.dumps(row.tries()))
            floor = records[f"none/{aim}/dev"]["ordinary"] - protocol.DAMAGE
            harmless = [one for one in tries if "error" not in one and one["ordinary"] >= floor]
            best = max((one["accuracy"] for one in harmless), default=None)
            for seed in records["sizes"]["seeds"]:
                final = records[f"{row.name}/{aim}/{seed}"]
                chosen = [one["accuracy"] for one in harmless if one["choice"] == final["choice"]]
                assert (chosen[:1] or [None]) == [best], (row.name, aim)


def test_what_the_page_says_in_short_is_what_the_records_say(scripts: Any) -> None:
    records = scripts("reading").Records(RESULTS / "reliability.jsonl")

    def gain(row: str, measure: str, aim: str = "objects", than: str = "none") -> Any:
        return records.difference((row, aim), (than, aim), measure)

    rows = [row.name for row in scripts("protocol").ROWS if records.has(row.name, "objects")]
    assert all(gain("threshold", "adversarial", than=row).high > 0 for row in rows)
    assert all(gain(row, "adversarial").low <= 0 for row in ("image_focus", "pasta", "pai", "vcd"))
    assert all(gain(row, "adversarial").value < 0 for row in ("pasta", "pai", "vcd"))
    assert all(gain(row, "auroc").high < 0 for row in ("pai", "vcd"))
    assert gain("hyper_icl", "adversarial").low > 0
    assert gain("live", "adversarial").value > 0 > gain("live", "adversarial").low
    assert all(gain(row, "yes").high < 0 for row in ("live", "hyper_icl"))
    assert all(gain(row, "ece").high < 0 for row in ("live", "hyper_icl"))
    assert gain("live", "chair_i").low > 0
    limit = -scripts("protocol").DAMAGE
    assert all(gain(row, "ordinary").value < limit for row in ("live", "image_focus"))
    assert all(gain(row, "ordinary").value > limit for row in rows if row not in ("live", "image_focus"))
    assert all(gain(row, "misled", "print").high < 0 for row in ("hyper_icl", "iti", "head_scale", "live"))
    assert gain("hyper_icl", "misled", "print", "threshold").high < 0
    known = gain("pasta, place known", "misled", "print")
    assert known.low <= 0 <= known.high
    assert all(abs(gain(row, "large").value) < 0.03 for row in rows)


def test_measures_by_hand(scripts: Any) -> None:
    reading = scripts("reading")
    c = {
        "yes": np.array([1, 1, 0, 0], bool), "said": np.array([1, 0, 1, 0], bool), "p": np.array([0.9, 0.4, 0.8, 0.1]),
        "blank": np.array([0.6, 0.6, 0.6, 0.6]), "group": np.array(["random", "random", "popular", "popular"]),
    }  # fmt: skip
    captions = {
        "mentions": np.array([2, 1]), "hallucinated": np.array([1, 0]), "objects": np.array([2, 2]),
        "recalled": np.array([1, 1]), "printed": np.array([0, 1]),
    }  # fmt: skip
    wanted = {
        "accuracy": 0.5, "random": 0.5, "popular": 0.5, "f1": 0.5, "yes": 0.5, "misled": 0.5, "auroc": 0.75,
        "brier": (0.01 + 0.36 + 0.64 + 0.01) / 4, "reliance": (0.3 + 0.2 + 0.2 + 0.5) / 4, "as_prior": 0.5,
        "chair_i": 1 / 3, "chair_s": 0.5, "recall": 0.5, "printed": 0.5,
    }  # fmt: skip
    for name, value in wanted.items():
        problem, statistic = reading.MEASURES[name]
        columns = captions if "captions" in problem else c
        assert statistic(columns, np.ones((1, 4 if columns is c else 2)))[0] == pytest.approx(value), name
        # a resample that holds everything twice says the same
        assert statistic(columns, np.full((1, 4 if columns is c else 2), 2.0))[0] == pytest.approx(value), name
