"""CHAIR's files are read as published, objects found as in the original, and numbers counted as by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from steer.errors import FileFormatError, SteerError
from steer.suites import Answer, chair
from steer.suites._objects import Objects
from tests.suites.made import SYNONYMS, chair_files

TABLE = Objects([line.split(", ") for line in SYNONYMS.splitlines()])


@pytest.mark.parametrize(
    "caption, objects",
    [
        ("A dog.", ["dog"]),
        ("Dogs and puppies", ["dog", "dog"]),
        ("two hot dogs", ["hot dog"]),
        ("It is hot, dog", ["dog"]),
        ("three teddy bears, one bear", ["bear", "bear"]),
        ("a baby bear", ["bear"]),
        ("an adult dog and a baby cat", ["dog", "cat"]),
        ("a passenger train", ["train"]),
        ("a passenger bus", ["bus"]),
        ("a man in a bow tie", ["person", "tie"]),
        ("the toilet seat", ["toilet"]),
        ("a toilet and a seat", ["toilet"]),
        ("a seat", ["chair"]),
        ("wine glasses on desks", ["wine glass", "dining table"]),
        ("a dining table", ["dining table"]),
        ("knives, scissors and buses", ["knife", "scissors", "bus"]),
        ("women and children", ["person"]),
        ("a traffic light at the home plate", []),
        ("the man's dog", ["person", "dog"]),
        ("", []),
    ],
)
def test_what_a_caption_mentions(caption, objects):
    assert TABLE.mentioned(caption) == objects


def test_the_pictures_objects_are_those_annotated_and_those_in_reference_captions(tmp_path):
    questions = chair.load(chair_files(tmp_path), tmp_path / "images")
    assert [sorted(one.facts.objects) for one in questions] == [
        ["dining table", "dog", "person"],
        ["cat", "chair"],
        ["dining table"],
    ]
    assert {one.example.question for one in questions} == {"Please describe this image in detail."}
    assert [one.key for one in questions] == ["10", "11", "12"]
    assert questions[0].example.images[0].size == (48, 48)


def test_the_numbers_are_those_counted_by_hand(tmp_path):
    questions = chair.load(chair_files(tmp_path), tmp_path / "images")
    captions = (
        "Two men with a hot dog and dogs at a table.",  # a hot dog is not there: 1 of 4 mentions; 11 words
        "A kitten and a baby bear on chairs; a bow tie.",  # neither are bear and tie: 2 of 4; 11 words
        "",
    )
    answers = [Answer(one.key, caption) for one, caption in zip(questions, captions, strict=True)]
    (score,) = chair.score(questions, answers, resamples=50)
    found = {name: one.value for name, one in score.metrics.items()}
    assert found["chair_i"] == 3 / 8
    assert found["chair_s"] == 2 / 3
    assert found["recall"] == 5 / 6
    assert found["words"] == pytest.approx((11 + 11 + 0) / 3)
    assert found["mentions"] == pytest.approx(8 / 3)
    better = [Answer("10", "A dog."), *answers[1:]]
    (change,) = chair.compare(questions, better, answers, resamples=50)
    assert change.differences["chair_i"].value == pytest.approx(2 / 5 - 3 / 8)
    assert (change.mcnemar.gained, change.mcnemar.lost) == (1, 0)


def test_captions_that_mention_nothing_have_no_share(tmp_path):
    questions = chair.load(chair_files(tmp_path), tmp_path / "images")
    (score,) = chair.score(questions, [Answer(one.key, "Nothing.") for one in questions], resamples=20)
    assert math.isnan(score.metrics["chair_i"].value)
    assert (score.metrics["chair_s"].value, score.metrics["recall"].value) == (0, 0)


def test_some_pictures_only(tmp_path):
    files = chair_files(tmp_path)
    (tmp_path / "images" / "0.png").unlink()
    (tmp_path / "some.jsonl").write_text('{"image_id": 12}\n{"image": "1.png"}\n')
    found = chair.load([*files, tmp_path / "some.jsonl"], tmp_path / "images")
    assert [one.key for one in found] == ["12", "11"]
    with pytest.raises(FileFormatError, match=r"picture 10: there is no picture .*0\.png"):
        chair.load(files, tmp_path / "images")


def change(path: Path, key: str, value: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize(
    "name, spoil, facts",
    [
        ("instances_val2014.json", lambda p: change(p, "categories", [{"id": 1, "name": "dgo"}]), ("dgo", "'dog'?")),
        (
            "instances_val2014.json",
            lambda p: change(p, "annotations", [{"image_id": 1}]),
            ("annotations[0]", "category_id"),
        ),
        (
            "instances_val2014.json",
            lambda p: change(p, "annotations", [{"image_id": 10, "category_id": 5}]),
            ("category", "not in the file"),
        ),
        ("captions_val2014.json", lambda p: change(p, "images", 3), ("images is no list",)),
        ("captions_val2014.json", lambda p: change(p, "annotations", [{"image_id": 99, "caption": ""}]), ("99",)),
        ("captions_val2014.json", lambda p: p.write_text("[]"), ("images and annotations", "list")),
        ("captions_val2014.json", lambda p: p.write_text("{"), ("not JSON",)),
        ("synonyms.txt", lambda p: p.write_text("dog, puppy\ncat, puppy\n"), (":2", "'puppy'", "'dog'")),
        ("synonyms.txt", lambda p: p.write_text("dog, , puppy\n"), (":1", "empty")),
        ("synonyms.txt", lambda p: p.write_text("\n"), ("no objects",)),
    ],
)
def test_a_spoilt_file_is_named(tmp_path, name, spoil, facts):
    files = chair_files(tmp_path)
    spoil(tmp_path / name)
    with pytest.raises(SteerError) as raised:
        chair.load(files, tmp_path / "images")
    assert all(fact in str(raised.value) for fact in (name, *facts)), str(raised.value)


def test_what_is_missing_is_said(tmp_path):
    instances, captions, synonyms = chair_files(tmp_path)
    for files, fact in (([instances, synonyms], "0 captions"), ([instances, captions], "0 .txt")):
        with pytest.raises(SteerError) as raised:
            chair.load(files, tmp_path / "images")
        assert fact in str(raised.value)
    with pytest.raises(SteerError, match=r"cannot read .*none\.json: No such file"):
        chair.load([tmp_path / "none.json", captions, synonyms], tmp_path / "images")
    with pytest.raises(SteerError, match=r"cannot read .*none\.txt: No such file"):
        chair.load([instances, captions, tmp_path / "none.txt"], tmp_path / "images")
    (tmp_path / "bytes.txt").write_bytes(b"dog, \xff")
    with pytest.raises(FileFormatError, match=r"bytes\.txt is not text"):
        chair.load([instances, captions, tmp_path / "bytes.txt"], tmp_path / "images")
    (tmp_path / "some.jsonl").write_text('{"image_id": 13}\n')
    with pytest.raises(FileFormatError, match=r"some\.jsonl:1"):
        chair.load([instances, captions, synonyms, tmp_path / "some.jsonl"], tmp_path / "images")
