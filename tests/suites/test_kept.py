"""What cannot be written or read where answers are kept is one line that names the file."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from steer._kept import Kept
from steer.errors import SteerError
from steer.examples import Example


@dataclass(frozen=True)
class One:
    """An answer."""

    key: str


def kept(folder, *images) -> Kept[One]:
    return Kept(folder, One, {"a": Example("what?", "that", images)}, "model", "how", "a way")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SteerError, match="cannot write .*file/in/answers-0"):
        kept(tmp_path / "file" / "in").keep([One("a")], 0)


def test_answers_that_cannot_be_read(tmp_path):
    (tmp_path / "answers-0.jsonl").mkdir()
    with pytest.raises(SteerError, match="cannot read .*answers-0.jsonl: Is a directory"):
        kept(tmp_path).read()


def test_a_picture_that_is_gone(tmp_path):
    with pytest.raises(SteerError, match="cannot read the picture .*gone.png: No such file"):
        kept(tmp_path / "answers", tmp_path / "gone.png").keep([One("a")], 0)
    assert not (tmp_path / "answers").exists()


def test_pictures_that_are_named_are_told_apart_by_their_names(tmp_path):
    kept(tmp_path, "one.png").keep([One("a")], 0)
    assert kept(tmp_path, "one.png").read() == {"a": One("a")}
    with pytest.raises(SteerError, match="another question 'a'"):
        kept(tmp_path, "two.png").read()
