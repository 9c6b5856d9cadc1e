"""Rows that a caller holds: lists, mappings, and Hugging Face datasets with or without the library."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from PIL import Image

import steer
from steer.data import read

from .test_files import picture, pixels


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, format="PNG")
    return stream.getvalue()


def test_lists_of_examples_and_of_rows(tmp_path):
    example = steer.Example("q", "a", (picture(0),))
    picture(1).save(tmp_path / "1.png")
    images = [
        picture(1),
        str(tmp_path / "1.png"),
        tmp_path / "1.png",
        {"bytes": png(1)},
        {"path": str(tmp_path / "1.png")},
    ]
    found = read([example, {"question": "q", "answer": "a", "images": images}, {"question": "q", "image": picture(1)}])
    assert found[0] is example
    assert pixels(found[1]) == [picture(1).tobytes()] * 5
    assert pixels(found[2]) == [picture(1).tobytes()]
    assert found[1].images[1:3][0].tobytes() == picture(1).tobytes()


def test_tensors_and_what_else_a_processor_takes_pass_through():
    thing = object()
    assert read([{"question": "q", "answer": "a", "images": [thing]}])[0].images[0] is thing


def test_renamed_columns():
    row = {"q": "what?", "a": ["yes", "no"], "img": picture(0), "id": 7, "answer": "wrong"}
    (found,) = read([row], columns={"question": "q", "answer": "a", "images": "img"})
    assert (found.question, found.answer, len(found.images)) == ("what?", "yes", 1)
    (found,) = read([row], columns={"question": "q", "answer": None, "image": None})
    assert (found.answer, found.images) == ("", ())


@pytest.mark.parametrize(
    "columns, reason",
    [({"questoin": "q"}, "did you mean 'question'"), ({"question": "quest"}, "did you mean 'question'")],
)
def test_a_wrong_renaming_names_what_there_is(columns, reason):
    with pytest.raises(steer.errors.UnknownNameError, match=reason):
        read([{"question": "q", "answer": "a"}], columns=columns)


@pytest.mark.parametrize(
    "source, reason",
    [
        ([{"text": "q"}], "row 0 has no column for question.*it has text"),
        ({"question": "q"}, "list of rows"),
        ([["q", "a"]], "row 0 is a list"),
        (3, "cannot be read from a int"),
        ([], "the list holds no examples"),
        ([{"question": "q", "image": {"url": "x"}}], "row 0: a picture has the keys url"),
        ([{"question": "q", "image": "nowhere.png"}], "row 0: there is no picture"),
    ],
)
def test_what_is_no_data_says_so(source, reason):
    with pytest.raises(steer.SteerError, match=reason):
        read(source)


def test_a_picture_is_turned_upright_as_transformers_does():
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    picture(0).save(stream, format="PNG", exif=exif)
    (found,) = read([{"question": "q", "image": {"bytes": stream.getvalue()}}])
    assert found.images[0].size == picture(0).size[::-1]


class Table:
    """What is asked of a Hugging Face dataset, without the library; counts how often a picture is decoded."""

    def __init__(self, rows: list[dict], decoded: list[int]) -> None:
        self.rows, self.decoded = rows, decoded

    column_names = property(lambda self: list(self.rows[0]))

    def select_columns(self, names):
        return Table([{name: row[name] for name in names} for row in self.rows], self.decoded)

    def __getitem__(self, index):
        row = self.rows[index]
        self.decoded += [index] if "image" in row else []
        return row

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return (self[i] for i in range(len(self)))


def test_a_tables_pictures_are_decoded_when_they_are_used():
    decoded: list[int] = []
    table = Table([{"question": f"q{i}", "answer": "a", "image": picture(i), "id": i} for i in range(5)], decoded)
    found = read(table, limit=3)
    assert [one.question for one in found] == ["q0", "q1", "q2"]
    assert not decoded
    assert pixels(found[2]) == [picture(2).tobytes()]
    assert set(decoded) == {2}


class Stream:
    """What is asked of a streamed Hugging Face dataset: rows in turn, columns by name, no length."""

    column_names = None

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    def select_columns(self, names):
        raise NotImplementedError

    def __getitem__(self, column):
        return [row[column] for row in self.rows]

    def __iter__(self):
        return iter(self.rows)


def test_a_streams_rows_are_taken_in_turn_and_no_further_than_the_limit():
    rows = [{"question": f"q{i}", "answer": "a", "image": picture(i)} for i in range(3)]
    found = read(Stream([*rows, "never looked at"]), limit=3)
    assert [one.question for one in found] == ["q0", "q1", "q2"]
    assert pixels(found[1]) == [picture(1).tobytes()]


def test_hugging_face_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    picture(1).save(tmp_path / "1.png")
    rows = {
        "q": ["a?", "b?", "c?"],
        "answers": [["x", "y"], ["z"], ["w"]],
        "picture": [picture(0), str(tmp_path / "1.png"), None],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())
    columns = {"question": "q", "image": "picture"}
    undecoded = table.cast_column("picture", datasets.Image(decode=False))
    for source in (table, table.to_iterable_dataset(), undecoded, datasets.DatasetDict({"train": table})):
        found = read(source, columns=columns)
        assert [(one.question, one.answer) for one in found] == [("a?", "x"), ("b?", "z"), ("c?", "w")]
        assert list(map(pixels, found)) == [[picture(0).tobytes()], [picture(1).tobytes()], []]
        assert len(read(source, columns=columns, limit=2)) == 2
    both = datasets.DatasetDict({"train": table, "test": table.select([1])})
    assert [one.question for one in read(both, split="test", columns=columns)] == ["b?"]
    with pytest.raises(steer.SteerError, match="several splits: train, test"):
        read(both, columns=columns)
    with pytest.raises(steer.SteerError, match="the dataset has no column for question .*it has q, answers, picture"):
        read(table)


def test_reading_brings_neither_torch_nor_the_datasets_library():
    code = (
        "import steer.data, sys; steer.data.read([{'question': 'q'}]); print({'torch', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
