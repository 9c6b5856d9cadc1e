"""`steer eval` goes on from kept answers in every kind of evaluation, and refuses those of another run."""

from __future__ import annotations

import json

import pytest

import steer
from tests.suites.made import pope_files

VLM = ("eval", "--model", "tiny-vlm", "--batch-size", 2)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, tiny_clip, pets):
    """A command line for each kind of data."""
    folder = tmp_path_factory.mktemp("pope")
    files = [word for file in pope_files(folder, n=2) for word in ("--data", file)]
    return {
        "examples": (*VLM, "--data", "zoo:colour", "--limit", 5, "--shots", 2, "--pool", "zoo:colour"),
        "pictures": ("eval", "--model", tiny_clip, "--data", pets, "--batch-size", 5),
        "suite": (*VLM, "--suite", "pope", *files, "--images", folder / "images"),
    }


def lines(folder):
    return [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def timeless(data):
    if isinstance(data, dict):
        return {key: timeless(value) for key, value in data.items() if not key.startswith("ms_")}
    return [timeless(one) for one in data] if isinstance(data, list) else data


@pytest.mark.parametrize("kind", ["examples", "pictures", "suite"])
def test_half_of_the_answers_are_taken_and_the_others_asked(steer_cli, kinds, tmp_path, kind):
    kept, words = tmp_path / "kept", (*kinds[kind], "--json")
    first = steer_cli(*words, "--answers", kept)
    assert first.code == 0, first.err
    file = kept / "answers-0.jsonl"
    whole = file.read_text().splitlines(keepends=True)
    file.write_text("".join(whole[: len(whole) // 2]) + whole[-1][:-9])
    half = [json.loads(line) for line in whole[: len(whole) // 2]]
    # Marked, to see that these and no others come back: a whole batch that is there is not asked again.
    marked = half[0] | ({"label": "dog"} if kind == "pictures" else {"text": "marked"})
    file.write_text(file.read_text().replace(whole[0], json.dumps(marked) + "\n"))
    out = tmp_path / "out.json"
    again = steer_cli(*words, "--answers", kept, "--out", out)
    assert again.code == 0, again.err
    written = json.loads(out.read_text())["answers"]
    said = [next(iter(one["said"].values())) for one in written]
    texts = [one if isinstance(one, str) else one.get("text", one.get("class")) for one in said]
    assert texts[0] == marked.get("text", marked.get("label"))
    assert len(whole) <= len(lines(kept)) <= len(whole) + 5


def test_answers_beside_out_are_gone_once_it_is_written(steer_cli, tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    words = (*VLM, "--data", "zoo:colour", "--limit", 6, "--out", out)
    from steer import _evaluating

    asked, real = [], _evaluating.write

    def cut(*given, **options):
        asked.append(given)
        if len(asked) == 4:  # the first one of all warms up
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(_evaluating, "write", cut)
    ran = steer_cli(*words)
    assert ran.code == 130
    assert "the same command goes on from" in ran.err
    assert len(lines(tmp_path / "found.json.answers")) == 4
    assert not out.exists()
    asked.clear()
    assert steer_cli(*words).code == 0
    assert len(asked) == 2  # to warm up, and the one batch that was missing
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert len(json.loads(out.read_text())["answers"]) == 6


@pytest.mark.parametrize(
    "more, facts",
    [
        (("--data", "zoo:position"), ("another question", "'0'")),
        (("--data", "zoo:colour", "--model", "OTHER"), ("another model",)),
        (("--data", "zoo:colour", "--seed", 3), ("another question",)),
    ],
)
def test_answers_of_another_run_are_refused_and_nothing_is_lost(steer_cli, tmp_path, more, facts):
    kept = tmp_path / "kept"
    assert steer_cli(*VLM, "--data", "zoo:colour", "--limit", 3, "--answers", kept).code == 0
    before = lines(kept)
    if "OTHER" in more:
        model, processor = steer.zoo.load()
        weight = next(model.parameters()).data
        same = weight.clone()
        weight.mul_(1.5)
        model.save_pretrained(tmp_path / "other")
        processor.save_pretrained(tmp_path / "other")
        weight.copy_(same)
    words = [str(tmp_path / "other") if one == "OTHER" else one for one in more]
    ran = steer_cli(*VLM, "--limit", 3, "--answers", kept, *words)
    assert ran.code == 1
    assert all(fact in ran.err for fact in (*facts, "answers-0.jsonl:1", "another folder", "delete")), ran.err
    assert ran.err.count("\n") == 1
    assert lines(kept) == before


def test_a_damaged_folder_is_refused_and_nothing_is_lost(steer_cli, tmp_path):
    kept, words = tmp_path / "kept", (*VLM, "--data", "zoo:colour", "--limit", 3)
    assert steer_cli(*words, "--answers", kept).code == 0
    file = kept / "answers-0.jsonl"
    damaged = file.read_bytes()[:40] + b"\xff" + file.read_bytes()[41:]
    file.write_bytes(damaged)
    ran = steer_cli(*words, "--answers", kept)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "answers-0.jsonl:1" in ran.err
    assert file.read_bytes() == damaged
    ran = steer_cli(*words, "--answers", file)
    assert (ran.code, "is a folder" in ran.err) == (1, True)


def test_more_questions_and_more_methods_are_added_to_what_is_there(steer_cli, tmp_path):
    kept, words = tmp_path / "kept", (*VLM, "--data", "zoo:colour", "--answers", tmp_path / "kept", "--json")
    assert steer_cli(*words, "--limit", 4).code == 0
    ran = steer_cli(*words, "--limit", 6, "--method", "image_focus", "--config", "beta=2")
    assert ran.code == 0, ran.err
    assert [row["name"] for row in json.loads(ran.out)["rows"]] == ["zero-shot", "image_focus"]
    assert len(lines(kept)) == 6 + 6


def test_several_sources_are_measured_each_and_together(steer_cli, tiny_clip, pets):
    data = json.loads(steer_cli(*VLM, "--data", "zoo:colour", "--data", "zoo:position", "--limit", 4, "--json").out)
    (row,) = data["rows"]
    assert data["data"] == ["zoo:colour", "zoo:position"]
    for one in row["by_data"]:
        ran = steer_cli(*VLM, "--data", one["name"], "--limit", 4, "--json")
        (alone,) = json.loads(ran.out)["rows"]
        assert timeless(one) == timeless(alone) | {"name": one["name"]}
    assert row["accuracy"] == sum(one["accuracy"] for one in row["by_data"]) / 2
    table = steer_cli("eval", "--model", tiny_clip, "--data", pets, "--data", pets / "val")
    assert table.code == 0, table.err
    for fact in ("val", "all", "on 20 pictures, of 4 classes"):
        assert fact in table.out
    ran = steer_cli("eval", "--model", tiny_clip, "--data", pets, "--data", pets, "--base-new")
    assert (ran.code, "--base-new" in ran.err) == (1, True)


def test_methods_that_need_no_fitting_are_named_in_every_kind(steer_cli, tiny_clip, pets):
    words = ("eval", "--model", tiny_clip, "--data", pets, "--json")
    ran = steer_cli(*words, "--method", "zero_shot", "--config", "templates=the {}.")
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["rows"]
    by_template = json.loads(steer_cli(*words, "--template", "the {}.").out)["rows"][0]
    assert [row["name"] for row in rows] == ["zero-shot, 'a photo of a {}.'", "zero-shot, 'the {}.'", "zero_shot"]
    assert rows[2]["accuracy"] == rows[1]["accuracy"] == by_template["accuracy"]
    for more, fact in (
        (("--method", "coop"), "fit"),
        (("--method", "zero_shot", "--config", "tmplates=x"), "'templates'"),
        (("--method", "zero_shott"), "did you mean 'zero_shot'?"),
    ):
        ran = steer_cli(*words, *more)
        assert (ran.code, fact in ran.err) == (1, True), ran.err
