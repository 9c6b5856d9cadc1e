"""`steer eval --suite` reports what the library finds, the model alone first, and goes on from kept answers."""

from __future__ import annotations

import json

import pytest
import torch

import steer
from steer.cli._eval_suite import Way
from steer.cli._eval_suite_table import Row, report
from steer.suites import Answer, chair, pope
from tests.suites.made import chair_files, pope_files

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """POPE's files, CHAIR's files, and a saved method."""
    folder = tmp_path_factory.mktemp("suites")
    for name in ("pope", "chair"):
        (folder / name).mkdir()
    found = {"pope": pope_files(folder / "pope", n=4), "chair": chair_files(folder / "chair"), "folder": folder}
    pool = steer.zoo.examples("plain:exists", "demo", 12)
    steer.create("savs").fit(*steer.zoo.load(), pool).save_pretrained(folder / "savs")
    return found


def given(made, suite):
    files = [word for file in made[suite] for word in ("--data", file)]
    return ("eval", "--model", "tiny-vlm", "--suite", suite, *files, "--images", made["folder"] / suite / "images")


def test_every_row_is_what_the_library_finds(steer_cli, made, tmp_path):
    methods = ("--method", "image_focus", "--config", "beta=3", "--method", made["folder"] / "savs")
    more = ("--prompt", "? {question}", "--batch-size", 5, "--seed", 2, "--out", tmp_path / "o.json", "--json")
    ran = steer_cli(*given(made, "pope"), *methods, *more)
    assert ran.code == 0, ran.err
    data, written = json.loads(ran.out), json.loads((tmp_path / "o.json").read_text())
    assert data["rows"] == written["rows"]
    assert [row["name"] for row in data["rows"]] == ["unsteered", "prompt '? {question}'", "image_focus", "savs"]
    questions = pope.load(made["pope"], made["folder"] / "pope" / "images")
    loaded = steer.zoo.load()
    ways = (
        {},
        {"wording": "? {question}"},
        {"method": steer.create("image_focus", beta=3.0)},
        {"method": steer.load(made["folder"] / "savs")},
    )
    base = None
    for row, way in zip(data["rows"], ways, strict=True):
        answers = pope.ask(*loaded, questions, batch_size=5, **way)
        assert row["scores"] == plain([one.to_dict() for one in pope.score(questions, answers, seed=2)])
        said = [one["said"][row["name"]] for one in written["answers"]]
        assert [one["text"] for one in said] == [one.text for one in answers]
        assert [one["p_yes"] for one in said] == [one.p_yes for one in answers]
        if base is None:
            base = answers
            assert row["against_unsteered"] == []
        else:
            against = pope.compare(questions, answers, base, seed=2)
            assert row["against_unsteered"] == plain([one.to_dict() for one in against])
    assert [one["group"] for one in data["rows"][0]["scores"]] == ["pope_random", "pope_popular", "all"]
    assert [one["answer"] for one in written["answers"]] == [one.example.answer for one in questions]
    first, _, focus, savs = data["rows"]
    assert first["ms_per_token_relative"] == 1
    assert focus["ms_per_token_relative"] == pytest.approx(focus["ms_per_token"] / first["ms_per_token"])
    assert savs["ms_per_token"] is None
    assert savs["ms_per_question"] > 0


def plain(data):
    return json.loads(json.dumps(data))


def test_captions(steer_cli, made):
    ran = steer_cli(*given(made, "chair"), "--wording", "what is it? {question}", "--max-new-tokens", 3, "--json")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    questions = chair.load(made["chair"], made["folder"] / "chair" / "images")
    answers = chair.ask(*steer.zoo.load(), questions, wording="what is it? {question}", max_new_tokens=3)
    assert data["rows"][0]["scores"] == plain([one.to_dict() for one in chair.score(questions, answers)])
    assert data["max_new_tokens"] == 3


def test_the_table_has_the_model_alone_first(steer_cli, made):
    ran = steer_cli(*given(made, "pope"), "--limit", 2, "--method", "image_focus", "--config", "image_focus.beta=3")
    assert ran.code == 0, ran.err
    assert 0 < ran.out.index("unsteered") < ran.out.index("image_focus")
    assert "accuracy" in ran.out
    assert "95 % interval" in ran.out
    assert ran.err == ""


def test_a_method_with_its_own_template_is_held_against_the_model_with_it(steer_cli, made):
    template = "{images}? {question} {answer}"
    more = ("--method", "image_focus", "--config", "beta=0", "--config", f"template={template}", "--json")
    ran = steer_cli(*given(made, "pope"), *more)
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["rows"]
    assert [row["name"] for row in rows] == ["unsteered", f"unsteered, template {template!r}", "image_focus"]
    (change, *_) = rows[2]["against_unsteered"]
    # With a strength of nought only the template could make a difference.
    assert all(one["value"] in (0, None) or abs(one["value"]) < 1e-6 for one in change["differences"].values())
    assert rows[0]["scores"][0]["brier"] != rows[1]["scores"][0]["brier"]


def test_a_run_goes_on_from_kept_answers(steer_cli, made, tmp_path, monkeypatch):
    kept = ("--answers", tmp_path / "kept", "--json")
    first = json.loads(steer_cli(*given(made, "pope"), *kept).out)
    file = tmp_path / "kept" / "answers-0.jsonl"
    lines = file.read_text()
    assert len(lines.splitlines()) == first["questions"] == 16
    monkeypatch.setattr("steer.suites._asking.write", lambda *a, **k: pytest.fail("asked again"))
    assert json.loads(steer_cli(*given(made, "pope"), *kept).out) == first
    assert file.read_text() == lines


POPE = ("--suite", "pope")


@pytest.mark.parametrize(
    "words, facts",
    [
        (("--suite", "poppe"), ("'poppe'", "chair, pope", "did you mean 'pope'?")),
        (("--suite", "pope", "--images", "/nowhere"), ("/nowhere", "pope")),
        (("--suite", "pope"), ("folder",)),
        (("--images", "."), ("--images", "--suite")),
        (("--suite", "pope", "--shots", 2), ("--shots", "pope")),
        (("--suite", "pope", "--answers", "/nowhere/kept"), ("/nowhere", "kept")),
        (("--prompt", "{question}"), ("--prompt", "--suite")),
    ],
)
def test_errors_say_how_to_go_on(steer_cli, words, facts):
    ran = steer_cli("eval", "--model", "tiny-vlm", "--data", "zoo:position", *words)
    assert ran.code == 1
    assert all(fact in ran.err for fact in facts), ran.err


@pytest.mark.parametrize(
    "words, facts",
    [
        (("--method", "image_fokus"), ("image_fokus", "did you mean 'image_focus'?")),
        (("--method", "image_focus", "--config", "bta=1"), ("'bta'", "did you mean 'beta'?")),
        (("--config", "beta=1"), ("--config", "--method")),
        (("--method", "live"), ("live", "fit")),
        (("--method", "zero_shot"), ("zero_shot",)),
        (
            ("--method", "image_focus", "--method", "head_scale", "--config", "beta=1"),
            ("several", "image_focus.beta=1"),
        ),
        (("--method", "image_focus", "--config", "focus.beta=1"), ("'focus'", "image_focus")),
        (("--prompt", "look"), ("'look'", "{question}")),
        (("--wording", "look"), ("'look'", "{question}")),
    ],
)
def test_ways_that_cannot_be_asked_are_named(steer_cli, made, words, facts):
    ran = steer_cli(*given(made, "pope"), *words)
    assert ran.code == 1
    assert all(fact in ran.err for fact in facts), ran.err


def test_files_without_questions_are_told_before_the_model_is_loaded(steer_cli, made, tmp_path):
    (tmp_path / "empty.json").write_text("")
    where = ("--suite", "pope", "--data", tmp_path / "empty.json", "--images", made["folder"] / "pope" / "images")
    ran = steer_cli("eval", "--model", "no-such-model", *where)
    assert ran.code == 1
    assert "empty.json hold no questions of suite 'pope'" in ran.err


def test_what_has_no_value_is_a_dash(made, capsys):
    """Captions that mention no object: none of nought mentions is wrong, and none is right."""
    questions = chair.load(made["chair"], made["folder"] / "chair" / "images")
    answers = [Answer(one.key, "Nothing.", tokens=2, ms=1.0) for one in questions]
    report([Row(Way("mute"), answers, chair.score(questions, answers, resamples=20), [])], chair, 1)
    line = next(line for line in capsys.readouterr().out.splitlines() if "mute" in line)
    number = list(chair.shown).index("chair_i")
    assert line.replace("|", " ").replace("│", " ").split()[3 + number] == "-"
