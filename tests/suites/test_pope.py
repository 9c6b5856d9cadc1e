"""POPE's files are read as published, answers judged as published, and numbers counted as by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer.errors import FileFormatError, SteerError
from steer.examples import Example
from steer.suites import Answer, Question, metrics, pope
from steer.suites._pope import published, strict
from tests.suites.made import pope_files

WORDS = st.sampled_from(
    ["No", "no", "not", "NO", "Yes", "yes", "there", "is", "isn't", "No,", ",", ".", "no.", " ", "\n"]
)


def by_the_published_rule(text: str) -> str:
    """POPE's evaluate.py, step by step as it goes."""
    if text.find(".") != -1:
        text = text[: text.index(".")]
    words, word = [], ""
    for character in text:
        if character == " ":
            words.append(word)
            word = ""
        elif character != ",":
            word += character
    words.append(word)
    return "no" if any(one in ("No", "not", "no") for one in words) else "yes"


@given(st.lists(WORDS, max_size=8), st.sampled_from(["", " "]))
def test_the_published_rule(words, between):
    text = between.join(words)
    assert published(text) == by_the_published_rule(text)


@pytest.mark.parametrize(
    "text, as_published, strictly",
    [
        ("Yes.", "yes", "yes"),
        ("no", "no", "no"),
        ("No, there is none. Yes.", "no", "no"),
        ("There is not.", "no", None),
        ("Yes. There is no dog.", "yes", "yes"),
        ("yes it is not far", "no", "yes"),
        ("NO", "yes", "no"),
        ("no!", "yes", "no"),
        ('"No"', "yes", "no"),
        ("", "yes", None),
        ("I cannot tell", "yes", None),
        ("Nothing", "yes", None),
    ],
)
def test_where_the_two_rules_differ(text, as_published, strictly):
    assert (published(text), strict(text)) == (as_published, strictly)


def questions_of(labels: str, groups: str = "", pictures: str = "") -> list[Question]:
    return [
        Question(
            str(i),
            groups[i] if groups else "g",
            Example("?", {"y": "yes", "n": "no"}[label]),
            pictures[i] if pictures else str(i),
        )
        for i, label in enumerate(labels)
    ]


def answers_of(texts: list[str], p_yes: list[float] | None = None) -> list[Answer]:
    return [Answer(str(i), text, None if p_yes is None else p_yes[i]) for i, text in enumerate(texts)]


def test_the_numbers_are_those_counted_by_hand():
    questions = questions_of("yyyynnnn")
    # True positives 3, false negatives 1, false positives 2, true negatives 2; "NO" is a yes as published.
    answers = answers_of(["Yes", "yes", "Yes.", "no", "yes", "NO", "no", "No."])
    (score,) = pope.score(questions, answers, resamples=50)
    found = {name: one.value for name, one in score.metrics.items()}
    assert (score.group, score.n) == ("g", 8)
    assert found["accuracy"] == 5 / 8
    assert found["precision"] == 3 / 5
    assert found["recall"] == 3 / 4
    assert found["f1"] == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert found["yes_ratio"] == 5 / 8
    assert found["strict_accuracy"] == 6 / 8
    assert found["undecided"] == 0
    assert all(np.isnan(found[name]) for name in ("auroc", "ece", "brier", "nll", "aurc"))
    for one in score.metrics.values():
        assert np.isnan(one.low) or one.low <= one.value <= one.high


def test_numbers_of_probabilities():
    questions, p = questions_of("yynn"), [0.9, 0.4, 0.3, 0.6]
    (score,) = pope.score(questions, answers_of(["yes", "no", "no", "yes"], p), resamples=50)
    found = {name: one.value for name, one in score.metrics.items()}
    label, sure, right = [1, 1, 0, 0], [0.9, 0.6, 0.7, 0.6], [1, 0, 1, 0]
    assert found["auroc"] == metrics.auroc(p, label) == 3 / 4
    assert found["brier"] == pytest.approx(metrics.brier(p, label))
    assert found["nll"] == pytest.approx(metrics.nll(p, label))
    assert found["ece"] == pytest.approx(metrics.ece(sure, right))
    assert found["aurc"] == pytest.approx(metrics.aurc(sure, right))


def test_what_has_no_value_is_nan():
    (score,) = pope.score(questions_of("yn"), answers_of(["no", "no"]), resamples=20)
    assert np.isnan(score.metrics["precision"].value)
    assert score.metrics["f1"].value == 0
    assert score.to_dict()["precision"] == {"value": None, "low": None, "high": None}


def test_groups_are_scored_apart_and_together_and_whole_pictures_are_drawn():
    questions = questions_of("ynynyn", groups="aabbbb", pictures="112233")
    answers = answers_of(["yes", "no", "no", "yes", "yes", "no"])
    scores = pope.score(questions, answers, seed=3)
    assert [(one.group, one.n, one.metrics["accuracy"].value) for one in scores] == [
        ("a", 2, 1.0),
        ("b", 4, 0.5),
        ("all", 6, 4 / 6),
    ]
    expected = metrics.bootstrap(lambda c: c["x"].mean(), {"x": [1, 1, 0, 0, 1, 1]}, clusters=list("112233"), seed=3)
    found = scores[2].metrics["accuracy"]
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_a_comparison_is_paired():
    questions = questions_of("yyyynnnn")
    before = answers_of(["no", "no", "no", "yes", "no", "no", "no", "yes"])
    after = answers_of(["yes", "yes", "no", "yes", "no", "no", "no", "yes"])
    (found,) = pope.compare(questions, after[::-1], before, resamples=200)
    assert (found.mcnemar.gained, found.mcnemar.lost, found.mcnemar.p) == (2, 0, 0.5)
    assert found.differences["accuracy"].value == pytest.approx(2 / 8)
    assert found.differences["recall"].value == pytest.approx(2 / 4)
    assert 0 <= found.differences["accuracy"].low < 2 / 8 < found.differences["accuracy"].high
    assert found.to_dict()["mcnemar"] == {"gained": 2, "lost": 0, "p": 0.5}


def test_the_files_are_read_as_published(tmp_path):
    files = pope_files(tmp_path, n=3)
    questions = pope.load(files, tmp_path / "images")
    assert [one.group for one in questions] == ["pope_random"] * 6 + ["pope_popular"] * 6
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    for question, row in zip(questions, rows, strict=True):
        assert (question.example.question, question.example.answer) == (row["text"], row["label"])
        assert question.cluster == row["image"]
        assert question.example.images[0].size == (48, 48)
    assert len({one.key for one in questions}) == 12
    assert len(pope.load(files, tmp_path / "images", limit=2)) == 4


def test_files_of_one_name_in_two_folders_are_two_groups(tmp_path):
    for name in ("coco", "gqa"):
        (tmp_path / name).mkdir()
        pope_files(tmp_path / name, n=1, names=("pope_random",))
    files = [tmp_path / name / "pope_random.json" for name in ("coco", "gqa")]
    found = pope.load(files, tmp_path / "coco" / "images")
    assert [one.group for one in found] == ["coco/pope_random"] * 2 + ["gqa/pope_random"] * 2


GOOD = {"question_id": 1, "image": "COCO_val2014_000000000000.png", "text": "is there a fox?", "label": "yes"}


@pytest.mark.parametrize(
    "rows, facts",
    [
        ([{**GOOD, "label": "maybe"}], (":1", "'maybe'", "yes, no")),
        ([GOOD, {"text": "?", "label": "yes"}], (":2", "question_id, image, text, label", "text, label")),
        ([{**GOOD, "text": 3}], (":1", "text is 3", "not a string")),
        ([{**GOOD, "image": "none.png"}], (":1", "none.png")),
        ([{**GOOD, "image": "../images/../../x.png"}], (":1", "outside")),
        ([GOOD, GOOD], (":2", ":1", "question_id")),
        ([[1]], (":1", "list")),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, rows, facts):
    pope_files(tmp_path, n=1)
    file = tmp_path / "bad.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FileFormatError) as raised:
        pope.load([file], tmp_path / "images")
    assert all(fact in str(raised.value) for fact in ("bad.json", *facts)), str(raised.value)


@pytest.mark.parametrize(
    "files, images, facts",
    [
        (["none.json"], ".", ("none.json", "cannot read")),
        ([], "nowhere", ("nowhere", "pope")),
        ([], None, ("folder",)),
    ],
)
def test_what_is_not_there_is_named(tmp_path, files, images, facts):
    with pytest.raises(SteerError) as raised:
        pope.load([tmp_path / name for name in files], images if images != "." else tmp_path)
    assert all(fact in str(raised.value) for fact in facts), str(raised.value)


def test_a_question_without_an_answer_is_named():
    with pytest.raises(SteerError, match=r"1 of 2 .* '1'"):
        pope.score(questions_of("yn"), answers_of(["yes"]))
    with pytest.raises(SteerError, match="no questions"):
        pope.score([], [])
