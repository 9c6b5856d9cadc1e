"""A data folder gives back what was written into it, and says file, line and reason where it is damaged."""

from __future__ import annotations

import json
import os

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import steer
from steer.data import read, write


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    noise = numpy.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=numpy.uint8)
    return Image.fromarray(noise).convert(mode)


def pixels(example: steer.Example) -> list[bytes]:
    return [image.convert("RGB").tobytes() for image in example.images]


examples = st.builds(
    steer.Example,
    question=st.text(max_size=20),
    answer=st.text(max_size=20),
    images=st.lists(st.integers(0, 5).map(picture), max_size=3).map(tuple),
)


@settings(max_examples=30)
@given(rows=st.lists(examples, min_size=1, max_size=6), again=st.lists(examples, min_size=1, max_size=3))
def test_what_is_written_is_read(rows, again, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for written in (rows, again):
        write(folder, written)
        found = read(folder)
        assert [(one.question, one.answer) for one in found] == [(one.question, one.answer) for one in written]
        assert list(map(pixels, found)) == list(map(pixels, written))
    assert {path.name for path in folder.iterdir()} == {"data.jsonl", "images"}


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "1"])
def test_pictures_of_any_mode_come_back_in_rgb(mode, tmp_path):
    write(tmp_path, [steer.Example("q", "a", (picture(0, mode),))])
    (found,) = read(tmp_path)
    assert found.images[0].mode == "RGB"
    assert pixels(found) == [picture(0, mode).convert("RGB").tobytes()]


def test_the_shipped_pictures_make_the_same_prompts_from_a_folder(tmp_path):
    asked = steer.zoo.examples("position", n=2)
    write(tmp_path, asked)
    _, processor = steer.zoo.load()

    def inputs(rows):
        return processor(text=["<image> ?"] * 2, images=[list(row.images) for row in rows], return_tensors="pt")

    assert (inputs(read(tmp_path))["pixel_values"] == inputs(asked)["pixel_values"]).all()


def test_splits_are_files(tmp_path):
    for split in ("train", "dev"):
        write(tmp_path, [steer.Example(split, "a")], split)
    assert [read(tmp_path, split=split)[0].question for split in ("train", "dev")] == ["train", "dev"]
    assert read(tmp_path / "dev.jsonl")[0].question == "dev"
    with pytest.raises(steer.SteerError, match=r"dev, train.*split="):
        read(tmp_path)
    with pytest.raises(steer.SteerError, match="did you mean 'train'"):
        read(tmp_path, split="trian")
    with pytest.raises(steer.SteerError, match="no splits"):
        read(tmp_path / "dev.jsonl", split="dev")
    with pytest.raises(steer.SteerError, match="cannot name a file"):
        write(tmp_path, [], "../dev")


def test_pictures_are_opened_when_they_are_used_and_not_kept_open(tmp_path):
    write(tmp_path, [steer.Example("q", "a", (picture(i),)) for i in range(50)])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    found = read(tmp_path)
    assert [len(one.images) for one in found] == [1] * 50
    taken = [one.images[0] for one in found]
    assert taken[0] is not found[0].images[0]
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    next((tmp_path / "images").glob("*.png")).write_bytes(b"damaged")
    with pytest.raises(steer.SteerError, match=r"cannot read the picture .*images.*\.png"):
        [list(one.images) for one in found]


def lines(folder, *rows) -> None:
    (folder / "data.jsonl").write_bytes(b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows))


GOOD = {"question": "q", "answer": "a", "images": []}


@pytest.mark.parametrize(
    "bad, reason",
    [
        (b'{"question": "q"', "not a line of JSON"),
        (b'{"question": "\xff"}', "not a line of JSON"),
        (b'{"question": NaN}', "NaN is not a JSON number"),
        (b"[" * 10_000, "not a line of JSON"),
        ([1], "is a list"),
        ({"answer": "a"}, "no column for question"),
        ({"q": "what?", "answer": "a", "images": []}, "columns={'question': 'q'}"),
        ({"question": "q", "anwser": "a", "images": []}, "columns={'answer': 'anwser'}"),
        ({"question": "q", "answer": "a", "img": "x.png"}, "columns={'images': 'img'}; none at all"),
        ({"question": "q", "answer": "a", "image": None, "images": []}, "both images and image"),
        ({"question": 3, "answer": "a"}, "question is 3, which is not a string"),
        ({"question": None, "answer": "a"}, "question is None"),
        ({"question": "q", "answer": 1.5}, "answer is 1.5"),
        ({"question": "q", "answers": []}, "answers is an empty list"),
        ({"question": "q", "answer": "a", "images": [3]}, "a picture is 3"),
        ({"question": "q", "answer": "a", "image": "no.png"}, "there is no picture"),
        ({"question": "q", "answer": "a", "image": "https://example.org/x.png"}, "nothing is downloaded"),
        ({"question": "q", "answer": "a", "image": ""}, "there is no picture"),
        ({"question": "q", "answer": "a", "image": "a\0b"}, "outside the folder"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(bad, reason, tmp_path):
    lines(tmp_path, GOOD, b"", bad)
    with pytest.raises(steer.errors.FileFormatError) as raised:
        read(tmp_path)
    assert f"{tmp_path / 'data.jsonl'}:3" in str(raised.value)
    assert reason in str(raised.value)


def test_pictures_outside_the_folder_are_refused_unless_the_caller_names_them(tmp_path):
    folder, outside = tmp_path / "data", tmp_path / "secret.png"
    (folder / "in").mkdir(parents=True)
    picture(0).save(outside)
    (folder / "link.png").symlink_to(outside)
    for name in ("../secret.png", str(outside), "link.png", "in/../../secret.png"):
        row = {"question": "q", "answer": "a", "image": name}
        lines(folder, row)
        with pytest.raises(steer.SteerError, match="outside the folder"):
            read(folder)
    (found,) = read([{**row, "image": str(outside)}])
    assert pixels(found) == [picture(0).tobytes()]
    picture(0).save(folder / "in" / "x.png")
    lines(folder, {**row, "image": "in/../in/x.png"})
    assert pixels(read(folder)[0]) == [picture(0).tobytes()]


def test_the_first_of_several_answers_is_taken_and_a_missing_one_is_empty(tmp_path):
    lines(tmp_path, {"question": "q", "answers": ["a", "b"]}, {"question": "q"}, {"question": "q", "answer": None})
    assert [one.answer for one in read(tmp_path)] == ["a", "", ""]


def test_a_mark_at_the_start_and_windows_lines_are_read(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b'\xef\xbb\xbf{"question": "a\xe2\x80\xa8b"}\r\n\r\n{"question": "c"}\r\n')
    assert [one.question for one in read(tmp_path)] == ["a\u2028b", "c"]


def test_what_is_not_there_says_so(tmp_path):
    with pytest.raises(steer.SteerError, match=r"no \.jsonl file"):
        read(tmp_path)
    with pytest.raises(steer.SteerError, match="there is no folder"):
        read(tmp_path / "nothing")
    with pytest.raises(steer.SteerError, match=r"cannot read .*nothing\.jsonl"):
        read(tmp_path / "nothing.jsonl")
    lines(tmp_path)
    with pytest.raises(steer.SteerError, match="holds no examples"):
        read(tmp_path)


def test_the_limit_stops_before_a_line_that_is_damaged(tmp_path):
    lines(tmp_path, GOOD, b"{")
    assert len(read(tmp_path, limit=1)) == 1
    with pytest.raises(steer.SteerError, match="limit is 0"):
        read(tmp_path, limit=0)


def test_an_interrupted_writing_leaves_the_old_data(tmp_path):
    write(tmp_path, [steer.Example("q", "a", (picture(0),))])
    with pytest.raises(steer.SteerError, match=r"examples\[1\] has a str"):
        write(tmp_path, [steer.Example("q2", "a", (picture(1),)), steer.Example("q", "a", ("path",))])
    (found,) = read(tmp_path)
    assert (found.question, pixels(found)) == ("q", [picture(0).tobytes()])
