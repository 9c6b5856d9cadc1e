"""docs/picture.png is drawn from the records of the results pages, and anew gives the same picture."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(DOCS / "experiments"))
    return importlib.import_module("picture")


def test_points_are_those_of_the_records(picture) -> None:
    """The mean over tasks and seeds of what was answered rightly, worked out here from the records themselves."""
    lines = (DOCS / "results" / "vectors-B.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    by_task: dict[str, list[float]] = {}
    for row in rows:
        parts = row["key"].split("/")
        if len(parts) == 4 and parts[2] == "live" and "right" in row:
            by_task.setdefault(parts[1], []).append(row["right"].count("1") / len(row["right"]))
    wanted = sum(sum(each) / len(each) for each in by_task.values()) / len(by_task)
    cost = next(row for row in rows if row["key"] == "cost")["ways"]["live"]["time"]
    time, accuracy = picture.points(1)["live"]
    assert (time, accuracy) == (pytest.approx(cost, abs=0.006), pytest.approx(wanted, abs=0.0006))


def test_every_row_that_was_timed_is_drawn(picture) -> None:
    for setting in (0, 1):
        drawn = picture.points(setting)
        assert {"zero-shot", "icl-8", "icl-16", "live", "joint", "hyper_icl", "icv"} <= set(drawn)


def test_the_picture_is_drawn_anew(picture, tmp_path) -> None:
    from matplotlib import image

    picture.main(tmp_path / "picture.png")
    kept, anew = image.imread(DOCS / "picture.png"), image.imread(tmp_path / "picture.png")
    assert kept.shape == anew.shape
    assert kept.shape[1] == 1440  # twice the 720 pixels that a page gives it
    assert abs(kept - anew).mean() < 0.01  # fonts may be another version's
