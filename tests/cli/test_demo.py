"""`steer demo` runs in little time, prints what it measured, and draws it."""

from __future__ import annotations

import json

import pytest
from PIL import Image, ImageDraw

import steer
from steer import _demo, _demo_picture

FEW = ("--limit", 6, "--shots", 6, "--method", "icv", "--method", "task_vector")


def test_the_numbers_as_json_and_the_picture(steer_cli, tmp_path):
    ran = steer_cli("demo", "--task", "colour", *FEW, "--png", tmp_path / "demo.png", "--json")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    data = json.loads(ran.out)
    rows = {row["name"]: row for row in data["rows"]}
    assert list(rows) == [
        "commonest answer", "zero-shot", "6-shot in context", "icv", "task_vector", "random task_vector",
    ]  # fmt: skip
    for name, row in rows.items():
        assert 0 <= row["accuracy"] <= 1
        assert (row["ms_per_query"] is None) == (name == "commonest answer")
    # A picture is nine tokens and the question one; a demonstration adds its answer and the end of the turn.
    assert rows["zero-shot"]["tokens_per_query"] == rows["task_vector"]["tokens_per_query"] == 10
    assert rows["6-shot in context"]["tokens_per_query"] == 10 + 6 * 12
    picture = Image.open(data["png"])
    assert picture.size[0] > 700
    assert len(picture.getcolors(1 << 20)) > 500
    assert [file.name for file in tmp_path.iterdir()] == ["demo.png"]


def test_the_map_and_a_table_in_the_current_folder(steer_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = steer_cli("demo", "--task", "if-animal", "--limit", 2, "--shots", 4, "--method", "icv")
    assert ran.code == 0, ran.err
    assert str(steer.inspect(steer.zoo.load()[0])) in ran.out
    for fact in (
        "zero-shot",
        "4-shot in context",
        "icv",
        "tokens / query",
        "ms / query",
        "strength=",
        "if the kind is",
    ):
        assert fact in ran.out
    assert str(tmp_path / "steer-demo.png") in ran.out
    assert (tmp_path / "steer-demo.png").exists()


@pytest.mark.parametrize(
    "arguments, facts",
    [
        (("--task", "color"), ["'color'", "colour"]),
        (("--method", "icvv"), ["'icvv'", "icv"]),
        (("--limit", "100000"), ["100000 queries", "720"]),
        (("--png", "no-folder/demo.png"), ["no-folder"]),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(steer_cli, tmp_path, monkeypatch, arguments, facts):
    monkeypatch.chdir(tmp_path)
    few = ("--limit", 2, "--shots", 4, "--method", "icv") if "--method" not in arguments else ("--shots", 4)
    ran = steer_cli("demo", *few, *arguments)
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    for fact in facts:
        assert fact in ran.err
    assert list(tmp_path.iterdir()) == []


def test_words_are_drawn_within_their_room():
    def width(room):
        picture = Image.new("L", (600, 40))
        _demo_picture._text(ImageDraw.Draw(picture), (0, 0), "a long answer in words", 30, "white", "la", room)
        return picture.getbbox()[2]

    assert width(None) > 200
    assert width(200) <= 200


def test_what_is_shown_without_a_choice_is_what_has_settings_for_it():
    settings = {name: steer.registry.method_class(name).demo for name in steer.methods()}
    assert _demo.shown() == [name for name in steer.methods() if settings[name] is not None]
    for name in _demo.shown():
        steer.create(name, **settings[name])
