"""Labelled pictures come out the same from a folder per class, a table, a dataset or pairs, and damage is named."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import steer
from steer.data import read, read_labelled, write

from .test_files import picture, pixels
from .test_rows import Stream, Table, png

# Class, and the seed of its picture.
PICTURES = [("great owl", 0), ("great owl", 1), ("red-fox", 2)]
WANTED = [("", name, [picture(seed).tobytes()]) for name, seed in PICTURES]


def taken(examples: list[steer.Example]) -> list[tuple[str, str, list[bytes]]]:
    return [(one.question, one.answer, pixels(one)) for one in examples]


def make_folder(root):
    """`PICTURES` as a folder per class, with what operating systems leave behind."""
    for name, seed in PICTURES:
        path = root / name.replace(" ", "_") / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
    (root / "great_owl" / ".hidden").write_bytes(b"")
    (root / "great_owl" / "Thumbs.db").write_bytes(b"")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "README.md").write_text("about")
    return root


def make_files(root):
    """The pictures in `root/p`; gives their paths from `root`."""
    (root / "p").mkdir()
    for _, seed in PICTURES:
        picture(seed).save(root / "p" / f"{seed}.png")
    return [f"p/{seed}.png" for _, seed in PICTURES]


def test_a_folder_per_class(tmp_path):
    root = make_folder(tmp_path / "data")
    assert taken(read_labelled(root)) == WANTED
    assert taken(read_labelled(str(tmp_path), split="data")) == WANTED


def test_a_folders_names_as_the_user_sees_fit(tmp_path):
    root = make_folder(tmp_path)
    named = {"great_owl": "Bubo", "red-fox": "Vulpes"}
    for names in (named, named.__getitem__):
        assert steer.data.classes_of(read_labelled(root, names=names)) == ["Bubo", "Vulpes"]
    with pytest.raises(steer.errors.UnknownNameError, match="no label in `names` 'red-fox'.*did you mean 'red_fox'"):
        read_labelled(root, names={"great_owl": "owl", "red_fox": "fox"})


def test_numbered_folders_and_a_list_of_names(tmp_path):
    for number in ("0", "01"):
        (tmp_path / number).mkdir()
        picture(0).save(tmp_path / number / "x.png")
    assert [one.answer for one in read_labelled(tmp_path, names=["owl", "fox"])] == ["owl", "fox"]


def separated(path, paths, delimiter):
    rows = [("image", "id", "label"), *((p, "7", f" {name} ") for p, (name, _) in zip(paths, PICTURES, strict=True))]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(delimiter.join(row) for row in rows).encode() + b"\r\n\r\n")


def jsonl(path, paths):
    rows = [{"image": image, "label": name} for image, (name, _) in zip(paths, PICTURES, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))


WRITERS = {
    "csv": lambda path, paths: separated(path, paths, ","),
    "tsv": lambda path, paths: separated(path, paths, "\t"),
    "jsonl": jsonl,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_files_name_pictures_beside_them_or_under_a_root(kind, tmp_path):
    paths = make_files(tmp_path)
    WRITERS[kind](tmp_path / f"all.{kind}", paths)
    assert taken(read_labelled(tmp_path / f"all.{kind}")) == WANTED
    (tmp_path / "lists").mkdir()
    WRITERS[kind](tmp_path / "lists" / f"all.{kind}", paths)
    assert taken(read_labelled(tmp_path / "lists" / f"all.{kind}", root=tmp_path)) == WANTED
    WRITERS[kind](tmp_path / "lists" / f"all.{kind}", [f"../{path}" for path in paths])
    with pytest.raises(steer.SteerError, match="outside the folder"):
        read_labelled(tmp_path / "lists" / f"all.{kind}")


def test_a_written_folder_is_read_by_its_own_columns(tmp_path):
    write(tmp_path, [steer.Example("", name, (picture(seed),)) for name, seed in PICTURES])
    assert taken(read_labelled(tmp_path / "data.jsonl", image="images", label="answer")) == WANTED
    with pytest.raises(steer.SteerError, match=r"give the file itself: .*data\.jsonl"):
        read_labelled(tmp_path)


def test_rows_pairs_and_examples(tmp_path):
    paths = [str(tmp_path / path) for path in make_files(tmp_path)]
    examples = [steer.Example("what?", name, (picture(seed),)) for name, seed in PICTURES]
    assert all(one is two for one, two in zip(read_labelled(examples), examples, strict=True))
    for source in (
        [{"image": picture(seed), "label": name, "id": 3} for name, seed in PICTURES],
        [{"image": {"bytes": png(seed)}, "label": name} for name, seed in PICTURES],
        [(picture(seed), name) for name, seed in PICTURES],
        [[path, name] for path, (name, _) in zip(paths, PICTURES, strict=True)],
        ((picture(seed), name) for name, seed in PICTURES),
    ):
        assert taken(read_labelled(source)) == WANTED


def test_a_picture_opened_by_its_caller_is_checked_too(tmp_path):
    picture(0).resize((64, 64)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:-100])
    with Image.open(tmp_path / "x.png") as opened:
        with pytest.raises(steer.SteerError, match="row 0"):
            read_labelled([(opened, "owl")])


class Indexed:
    """A data set as torch's are: indexed, with a length, and no iterator."""

    def __len__(self):
        return len(PICTURES)

    def __getitem__(self, index):
        return picture(PICTURES[index][1]), ["great owl", "red-fox"].index(PICTURES[index][0])


def test_what_is_indexed_with_numbers_for_labels():
    assert taken(read_labelled(Indexed(), names=["great owl", "red-fox"])) == WANTED
    with pytest.raises(steer.SteerError, match=r"row 0: the label is 0 and no name; .*names=\["):
        read_labelled(Indexed())
    with pytest.raises(steer.SteerError, match="row 2: the label is 1, and there are names for 0 to 0"):
        read_labelled(Indexed(), names=["great owl"])


def test_a_tables_pictures_stay_where_they_are_unless_they_are_checked():
    decoded: list[int] = []
    table = Table([{"image": picture(seed), "label": name} for name, seed in PICTURES], decoded)
    found = read_labelled(table, check=False)
    assert not decoded
    assert taken(found) == taken(read_labelled(table)) == WANTED
    assert set(decoded) == {0, 1, 2}
    assert taken(read_labelled(Stream([{"image": picture(s), "label": n} for n, s in PICTURES]))) == WANTED


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The feature of a column of pictures, as `datasets.Image` is asked."""

    decode: bool = True


class Featured(Table):
    """A table with features; a row's picture is decoded as the row is read, unless that was changed."""

    def __init__(self, rows: list[dict], features: dict) -> None:
        super().__init__(rows, [])
        self.features = features

    def cast_column(self, column, feature):
        return Featured(self.rows, {**self.features, column: feature})

    def __getitem__(self, index):
        row = self.rows[index]
        decoded = self.features["image"].decode
        return {**row, "image": Image.open(io.BytesIO(row["image"]["bytes"]))} if decoded else row


def featured(*rows: tuple[bytes, int]) -> Featured:
    kinds = SimpleNamespace(names=["red-fox", "great owl"])
    made = [{"image": {"bytes": data}, "label": label} for data, label in rows]
    return Featured(made, {"image": Pictures(), "label": kinds})


def test_numbers_of_a_table_are_its_classes_names_and_others_only_if_that_is_said():
    table = featured((png(0), 0), (png(1), 1))
    assert taken(read_labelled(table)) == [
        ("", "red-fox", [picture(0).tobytes()]),
        ("", "great owl", [picture(1).tobytes()]),
    ]
    assert [one.answer for one in read_labelled(table, names=str.upper)] == ["RED-FOX", "GREAT OWL"]
    assert [one.answer for one in read_labelled(table, names={"red-fox": "a", "great owl": "b"})] == ["a", "b"]
    assert [one.answer for one in read_labelled(table, names=["c", "d"])] == ["c", "d"]
    with pytest.raises(steer.SteerError, match="row 1 has no label"):  # where labels are withheld
        read_labelled(featured((png(0), 0), (png(1), -1)))


def test_a_damaged_picture_of_a_table_is_told_by_its_row():
    with pytest.raises(steer.SteerError, match="1 pictures cannot be read.*\nrow 1: "):
        read_labelled(featured((png(0), 0), (b"no", 1), (png(2), 1)))
    with pytest.raises(steer.SteerError, match="row 0: there is no picture"):
        read_labelled(Table([{"image": None, "label": "owl"}], []))


def test_one_of_several_tables_is_taken_by_its_name():
    parts = {name: Table([{"image": picture(i), "label": name}], []) for i, name in enumerate(("train", "test"))}
    assert [one.answer for one in read_labelled(parts, split="test")] == ["test"]
    assert [one.answer for one in read_labelled({"train": parts["train"]})] == ["train"]
    with pytest.raises(steer.SteerError, match="several splits: train, test; .*split="):
        read_labelled(parts)
    with pytest.raises(steer.SteerError, match="'tran'.*train, test.*did you mean 'train'"):
        read_labelled(parts, split="tran")


def test_hugging_face_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    make_files(tmp_path)
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["red-fox", "great owl"])})
    rows = {"img": [picture(0), str(tmp_path / "p/1.png"), {"bytes": png(2)}], "kind": [1, 1, 0]}
    table = datasets.Dataset.from_dict(rows, features=features)
    columns = {"image": "img", "label": "kind"}
    both = datasets.DatasetDict({"train": table, "test": table.select([2])})
    undecoded = table.cast_column("img", datasets.Image(decode=False))
    for source in (table, undecoded, table.to_iterable_dataset(), table.with_format("numpy", ["kind"], True)):
        assert taken(read_labelled(source, **columns)) == WANTED
    assert taken(read_labelled(both, split="test", **columns)) == WANTED[2:]
    assert table.features["img"].decode
    shorter = {"red-fox": "fox", "great owl": "owl"}
    assert [one.answer for one in read_labelled(table, names=shorter, **columns)] == ["owl", "owl", "fox"]
    assert [one.answer for one in read_labelled(table, names=["a", "b"], **columns)] == ["b", "b", "a"]
    with pytest.raises(steer.errors.UnknownNameError, match="no column 'image'; known: img, kind"):
        read_labelled(table, label="kind")
    damaged = datasets.Dataset.from_dict({**rows, "img": [{"bytes": b"no"}] * 2 + [picture(2)]}, features=features)
    with pytest.raises(steer.SteerError, match=r"(?s)2 pictures.*row 0: cannot.*row 1: cannot"):
        read_labelled(damaged, **columns)
    withheld = datasets.Dataset.from_dict({**rows, "kind": [1, 1, -1]}, features=features)
    with pytest.raises(steer.SteerError, match="row 2 has no label"):
        read_labelled(withheld, **columns)


def test_empty_classes_are_all_named(tmp_path):
    make_folder(tmp_path)
    for name in ("lynx", "vole"):
        (tmp_path / name).mkdir()
    (tmp_path / "vole" / ".DS_Store").write_bytes(b"")
    with pytest.raises(steer.SteerError, match="classes without a picture: lynx, vole"):
        read_labelled(tmp_path)


def test_folders_that_hold_no_classes(tmp_path):
    with pytest.raises(steer.SteerError, match="no folders in it"):
        read_labelled(tmp_path)
    make_folder(tmp_path / "train")
    with pytest.raises(steer.SteerError, match=r"holds folders \(great_owl, red-fox\).*split='train'"):
        read_labelled(tmp_path)
    with pytest.raises(steer.errors.UnknownNameError, match="no split 'trian'; known: train; .*did you mean 'train'"):
        read_labelled(tmp_path, split="trian")


def test_a_folder_that_the_system_does_not_let_us_read_is_named(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(steer.SteerError, match=f"cannot read the folder {tmp_path}: Permission denied"):
        read_labelled(tmp_path)


def test_two_folders_that_would_be_one_class(tmp_path):
    for name in ("red_fox", "red fox"):
        (tmp_path / name).mkdir()
        picture(0).save(tmp_path / name / "x.png")
    with pytest.raises(steer.SteerError, match="'red fox' and 'red_fox' would be one class"):
        read_labelled(tmp_path)
    merged = read_labelled(tmp_path, names=lambda name: "fox")
    assert [one.answer for one in merged] == ["fox", "fox"]


def damage(root):
    """Two pictures more that cannot be read: no picture at all, and one whose end is missing."""
    (root / "red-fox" / "notes.txt").write_text("not a picture")
    picture(0).resize((64, 64)).save(root / "red-fox" / "cut.jpg")
    (root / "red-fox" / "cut.jpg").write_bytes((root / "red-fox" / "cut.jpg").read_bytes()[:-200])


def test_unreadable_pictures_are_named_and_skipped_only_on_request(tmp_path):
    damage(make_folder(tmp_path))
    with pytest.raises(steer.SteerError) as raised:
        read_labelled(tmp_path)
    for fact in ("2 pictures", "cut.jpg", "notes.txt", "skip_unreadable=True"):
        assert fact in str(raised.value)
    with pytest.warns(UserWarning, match=r"(?s)2 pictures.*cut\.jpg.*notes\.txt") as warned:
        assert taken(read_labelled(tmp_path, skip_unreadable=True)) == WANTED
    assert warned[0].filename == __file__
    (tmp_path / "red-fox" / "2.png").unlink()
    with (
        pytest.warns(UserWarning, match="2 pictures"),
        pytest.raises(steer.SteerError, match="none of the pictures of these classes can be read: red-fox"),
    ):
        read_labelled(tmp_path, skip_unreadable=True)


def test_unchecked_pictures_are_named_when_they_are_used(tmp_path):
    damage(make_folder(tmp_path))
    found = read_labelled(tmp_path, check=False)
    assert len(found) == 5
    with pytest.raises(steer.SteerError, match=r"cannot read the picture .*cut\.jpg"):
        list(map(pixels, found))
    with pytest.raises(steer.SteerError, match="check=True"):
        read_labelled(tmp_path, check=False, skip_unreadable=True)


def test_missing_pictures_of_a_file_are_named_with_their_lines(tmp_path):
    paths = make_files(tmp_path)
    separated(tmp_path / "all.csv", [paths[0], "p/gone.png", paths[2]], ",")
    with pytest.raises(steer.SteerError, match=r"1 pictures cannot.*\n.*all\.csv:3: there is no picture .*gone\.png"):
        read_labelled(tmp_path / "all.csv")
    with pytest.warns(UserWarning, match=r"all\.csv:3"):
        assert taken(read_labelled(tmp_path / "all.csv", skip_unreadable=True)) == [WANTED[0], WANTED[2]]


def test_readable_pictures_bring_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_labelled(make_folder(tmp_path), skip_unreadable=True)


def test_pictures_outside_a_class_folder_are_refused(tmp_path):
    picture(0).save(tmp_path / "secret.png")
    root = make_folder(tmp_path / "data")
    (root / "red-fox" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(steer.SteerError, match="outside the folder"):
        read_labelled(root)


@pytest.mark.parametrize(
    "name, body, reason",
    [
        ("x.csv", "img,label\n", "holds no labelled pictures"),
        ("x.csv", "img,label\np/0.png,owl\n", "no column 'image'; known: img, label; .*did you mean 'img'"),
        ("x.csv", "image,labels\np/0.png,owl\n", "no column 'label'; known: image, labels; .*did you mean 'labels'"),
        ("x.csv", "image,label\np/0.png,owl\np/0.png\n", r"x\.csv:3 has 1 cells, and the first line has 2"),
        ("x.csv", "image,label\np/0.png, \n", r"x\.csv:2 has no label"),
        ("x.csv", 'image,label\n"p/0.png,owl\n', "is not a table"),
        ("x.csv", "image,label\n\udcff,owl\n", "is not a table"),
        ("x.csv", "", "holds no labelled pictures"),
        ("x.jsonl", '{"image": "p/0.png", "label": 3}', r"x\.jsonl:1: the label is 3 and no name"),
        ("x.jsonl", '{"image": "p/0.png"}', "no column 'label'"),
        ("x.jsonl", '{"image": ["p/0.png", "p/1.png"], "label": "owl"}', "has 2 pictures"),
        ("x.jsonl", "{", r"x\.jsonl:1 is not a line of JSON"),
        ("x.jsonl", "[1]", r"x\.jsonl:1 is a list"),
        ("x.parquet", "", r"\.csv, \.tsv, \.jsonl"),
    ],
)
def test_what_is_wrong_in_a_file(name, body, reason, tmp_path):
    make_files(tmp_path)
    (tmp_path / name).write_bytes(body.encode("utf-8", "surrogateescape"))
    with pytest.raises(steer.SteerError, match=reason):
        read_labelled(tmp_path / name)


@pytest.mark.parametrize(
    "source, reason",
    [
        ([], "the list holds no labelled pictures"),
        (3, "cannot be read from a int"),
        (["owl"], "row 0 is a str; give pairs"),
        ([("nowhere.png", "owl")], "row 0: there is no picture nowhere.png"),
        ([(None, "owl")], "row 0: a picture is None"),
        ([(picture(0), "")], "row 0 has no label"),
        ([(picture(0), 1.5)], "row 0: the label is 1.5 and no name"),
        ([steer.Example("q", "owl")], "row 0 is an example with 0 pictures"),
        ([steer.Example("q", "", (picture(0),))], "row 0 .*the answer ''"),
        ({"image": picture(0), "label": "owl"}, "list of rows"),
        ("nowhere.csv", "cannot read nowhere.csv"),
    ],
)
def test_what_is_no_labelled_data_says_so(source, reason):
    with pytest.raises(steer.SteerError, match=reason):
        read_labelled(source)


@pytest.mark.parametrize(
    "names, reason",
    [
        ("abc", "names is the string 'abc'"),
        (["owl"], "only whole numbers can be looked up"),
        (lambda name: "", "no string of words"),
        (lambda name: 3, "no string of words"),
    ],
)
def test_names_that_give_no_name(names, reason):
    with pytest.raises(steer.SteerError, match=reason):
        read_labelled([(picture(0), "owl")], names=names)


def test_labelled_pictures_read_by_read_stay_as_they_are():
    rows = [{"question": "", "answer": name, "image": picture(seed)} for name, seed in PICTURES]
    assert taken(read_labelled(read(rows))) == WANTED


def test_reading_brings_neither_torch_nor_numpy_nor_pil():
    code = "import steer.data, sys; print({'torch', 'numpy', 'PIL', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
