"""Calls that cannot be right end in one line that says why, before anything is run or written."""

from __future__ import annotations

import os

import pytest

TINY = ("--model", "tiny-vlm")
ASK = ("generate", *TINY, "--prompt", "q")
FIT = ("fit", "icv", *TINY, "--data", "zoo:colour", "--limit", 6)

# The words, the exit code, and what the line must say.
WRONG = [
    (("generate", "--model", "./nope", "--prompt", "q"), 1, ["'./nope'", "folder", "tiny-vlm"]),
    (("inspect", "a/b/config.json"), 1, ["'a/b/config.json'", "config.json"]),
    (("generate", "--model", "", "--prompt", "q"), 2, ["--model", "empty"]),
    (("generate", *TINY, "--prompt", ""), 1, ["no words", "no pictures"]),
    ((*ASK, "--seed", -1), 2, ["--seed", "0"]),
    ((*ASK, "--seed", 2**32), 2, ["--seed", str(2**32 - 1)]),
    ((*ASK, "--device", "meta"), 1, ["'meta'"]),
    ((*ASK, "--method", "./a_file"), 1, ["./a_file is a file", "steer_method.json"]),
    ((*ASK, "--method", "./nothing"), 1, ["no folder './nothing'", "steer_method.json"]),
    ((*FIT, "--out", ""), 2, ["--out", "empty"]),
    ((*FIT, "--out="), 2, ["--out", "empty"]),
    ((*FIT, "--out", "a_file"), 1, ["a_file is a file"]),
    ((*FIT, "--out", "a_file/below"), 1, ["a_file is a file", "a_file/below"]),
    ((*FIT, "--out", "locked/below"), 1, ["locked cannot be written to"]),
    (("eval", *TINY, "--data", "zoo:colour", "--out", "locked"), 1, ["locked is a folder"]),
    (("eval", *TINY, "--data", "zoo:colour", "--out", "locked/x.json"), 1, ["locked cannot be written to"]),
    (("profile", *TINY, "--data", "zoo:colour", "--out", "locked/heads"), 1, ["locked cannot be written to"]),
]


@pytest.mark.parametrize(("words", "code", "facts"), WRONG)
def test_a_wrong_call_is_one_line(steer_cli, monkeypatch, tmp_path, words, code, facts):
    (tmp_path / "a_file").write_text("x")
    (tmp_path / "locked").mkdir()
    monkeypatch.chdir(tmp_path)
    # Who runs the tests may write anywhere.
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK or not str(path).endswith("locked"))
    before = sorted(tmp_path.rglob("*"))
    ran = steer_cli(*words)
    assert (ran.code, ran.out) == (code, ""), ran.err
    (line,) = ran.err.splitlines()
    assert [fact for fact in facts if fact not in line] == [], line
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_prompt_about_a_picture_is_a_prompt(steer_cli, tmp_path):
    import steer

    steer.zoo.examples("colour", n=1)[0].images[0].save(tmp_path / "picture é.png")
    asked = ("generate", *TINY, "--prompt", "", "--image", tmp_path / "picture é.png", "--max-new-tokens", 1)
    assert steer_cli(*asked).code == 0


def test_a_name_near_one_of_the_zoo_is_told_it(steer_cli, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ran = steer_cli("inspect", "tiny_vlm")
    assert ran.code == 1
    assert "did you mean 'tiny-vlm'?" in ran.err


def test_a_warning_of_ours_is_one_line_and_others_are_left_as_they_were(steer_cli):
    import warnings

    import steer.cli.app

    steer_cli("--version")
    ours = warnings.formatwarning("broken\nplugin", RuntimeWarning, steer.cli.app.__file__, 3)
    assert ours == "steer: broken plugin\n"
    assert (
        warnings.formatwarning("theirs", RuntimeWarning, "/elsewhere.py", 3)
        == "/elsewhere.py:3: RuntimeWarning: theirs\n"
    )
