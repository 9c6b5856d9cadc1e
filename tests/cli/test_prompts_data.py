"""Labelled pictures from each place that the commands take them from, and what is said of data that is not in order."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest

import steer
from steer.cli._fit_labelled import pictures
from steer.cli._labelled import Wanted, class_names
from steer.data import read_labelled
from steer.errors import SteerError

from .conftest import COLOURS, picture_of

ALL = list(COLOURS)


def wanted(**more) -> Wanted:
    return Wanted(**{"classes": None, "read": [], "skip_unreadable": False, "limit": None, "seed": 0, **more})


def counts(source, role, **more) -> dict[str, int]:
    found, names = wanted(**more).of(str(source), role)
    made = {name: sum(one.answer == name for one in found) for name in names}
    assert sum(made.values()) == len(found)
    return made


class Table:
    """What is asked of a Hugging Face dataset, without the library."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = rows

    column_names = property(lambda self: list(self.rows[0]))

    def select_columns(self, names):
        return Table([{name: row[name] for name in names} for row in self.rows])

    def __getitem__(self, index):
        return self.rows[index]

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows)


def table(count: int) -> Table:
    return Table([{"image": picture_of(name, i), "label": name} for name in ALL for i in range(count)])


@pytest.fixture
def library(monkeypatch):
    """A stand-in for `datasets`: its folders and the hub hold the same three parts."""
    parts = {"train": table(3), "validation": table(2), "test": table(1)}
    asked = []

    def given(name):
        asked.append(name)
        if "none" in name:
            raise FileNotFoundError(f"no such dataset\n{name}")
        return {"one/part": {"all": table(4)}, "two/parts": {"a": table(1), "b": table(2)}}.get(name, parts)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=given, load_from_disk=given))
    return asked


@pytest.mark.parametrize("role, count", [("train", 5), ("dev", 2), ("test", 3)])
def test_a_folder_with_splits(pets, role, count):
    assert counts(pets, role) == dict.fromkeys(ALL, count)
    assert counts(pets / "val", role) == dict.fromkeys(ALL, 2)
    assert counts(pets, role, read=["split=val"]) == dict.fromkeys(ALL, 2)


def test_a_class_that_is_called_as_a_split_is_a_class(tmp_path):
    for name in ("test", "train"):
        (tmp_path / name).mkdir()
        picture_of("cat", 0).save(tmp_path / name / "0.png")
    assert counts(tmp_path, "test") == {"test": 1, "train": 1}


@pytest.mark.parametrize("ending, mark", [("csv", ","), ("tsv", "\t")])
def test_a_folder_with_tables(pets, tmp_path, ending, mark):
    shutil.copytree(pets / "val", tmp_path / "pictures")
    for name, some in (("train", ALL), ("test", ALL[:2])):
        lines = [f"pictures/{one.replace(' ', '_')}/0.png{mark}{one}" for one in some]
        (tmp_path / f"{name}.{ending}").write_text("\n".join([f"image{mark}label", *lines]) + "\n")
    assert counts(tmp_path, "train") == dict.fromkeys(ALL, 1)
    assert counts(tmp_path, "test") == dict.fromkeys(ALL[:2], 1)
    assert counts(tmp_path / f"test.{ending}", "train") == dict.fromkeys(ALL[:2], 1)


@pytest.mark.parametrize("role, count", [("train", 3), ("dev", 2), ("test", 1)])
def test_a_data_set_of_the_hub_or_a_folder_that_it_was_saved_to(library, tmp_path, role, count):
    (tmp_path / "dataset_dict.json").write_text("{}")
    for source in ("user/pets", tmp_path):
        assert counts(source, role) == dict.fromkeys(ALL, count)
        assert counts(source, role, read=["split=test"]) == dict.fromkeys(ALL, 1)
    assert counts("one/part", role) == dict.fromkeys(ALL, 4)
    assert counts("two/parts", role, read=["split=b"]) == dict.fromkeys(ALL, 2)
    assert library[0] == "user/pets"


def test_the_library_itself(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=ALL)})
    rows = {"img": [picture_of(name, i) for i, name in enumerate(ALL)], "kind": [0, 1, 2, 3]}
    one = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": one, "test": one.select([2])}).save_to_disk(str(tmp_path / "two"))
    one.save_to_disk(str(tmp_path / "one"))
    read = ["image=img", "label=kind"]
    assert counts(tmp_path / "two", "train", read=read) == dict.fromkeys(ALL, 1)
    assert counts(tmp_path / "two", "test", read=read) == {ALL[2]: 1}
    assert counts(tmp_path / "one", "test", read=read) == dict.fromkeys(ALL, 1)


@pytest.mark.parametrize(
    "source, facts",
    [
        ("none/such", ("hub 'none/such'", "no such dataset")),
        ("two/parts", ("the splits a, b and no train", "--read split=a")),
        ("user/pets.saved-none", ("'user/pets.saved-none'", "no such dataset")),
    ],
)
def test_what_is_not_on_the_hub(library, source, facts):
    with pytest.raises(SteerError) as error:
        wanted().of(source, "train")
    assert all(fact in str(error.value) for fact in facts), error.value


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SteerError, match="pip install datasets"):
        wanted().of("user/pets", "train")


def test_what_is_no_hub_id_is_looked_for_on_the_disk_only(library, tmp_path):
    for source in ("pets", "./user/pets", "a/b/c", "user/pets.csv", str(tmp_path / "no")):
        with pytest.raises(SteerError) as error:
            wanted().of(source, "train")
        assert source.removeprefix("./") in str(error.value)
    assert library == []


def test_the_zoos_pictures():
    few = ["banana", "pizza"]
    for role, split in (("train", "train"), ("dev", "val"), ("test", "test")):
        found, names = wanted(classes="pizza,banana", seed=3, read=["per_class=2"]).of("zoo:food", role)
        mine = [one for one in steer.zoo.labelled("food", split, per_class=2, seed=3) if one[1] in few]
        assert names == ["pizza", "banana"]
        assert [one.answer for one in found] == [label for _, label in mine]
        pairs = zip(found, mine, strict=True)
        assert all(one.images[0].tobytes() == picture.tobytes() for one, (picture, _) in pairs)


def test_a_set_of_the_zoo_is_fitted_on_and_chosen_by_without_a_picture_in_both():
    found, held, _ = pictures(wanted(read=["per_class=1"]), "zoo:food", "zoo:food", None, False, False)
    for mine, split in ((found, "train"), (held, "val")):
        theirs = [picture.tobytes() for picture, _ in steer.zoo.labelled("food", split, per_class=1)]
        assert [one.images[0].tobytes() for one in mine] == theirs


def test_a_limit_draws_from_all_classes_and_keeps_their_order(pets):
    whole = read_labelled(pets, split="train")
    found, names = wanted(limit=9, seed=1).of(str(pets), "train")
    places = [[one.images.sources for one in whole].index(one.images.sources) for one in found]
    assert len(places) == 9
    assert places == sorted(places)
    assert len({one.answer for one in found}) == 4  # the first 9 of all are of two classes
    assert names == ALL
    assert len(wanted(limit=99).of(str(pets), "train")[0]) == 20


@pytest.mark.parametrize("command", [("fit", "tip_adapter"), ("eval",)])
def test_unreadable_pictures_are_named_and_left_out_only_on_request(steer_cli, tiny_clip, pets, tmp_path, command):
    data = tmp_path / "data"
    shutil.copytree(pets / "val", data)
    (data / "dog" / "0.png").write_bytes(b"no picture")
    out = ("--out", tmp_path / "out") if command[0] == "fit" else ()
    asked = (*command, "--model", tiny_clip, "--data", data, *out, "--json")
    ran = steer_cli(*asked)
    assert ran.code == 1
    assert all(fact in ran.err for fact in ("1 pictures cannot be read", "0.png", "--skip-unreadable leaves them out"))
    assert ran.err.count("\n") == 1
    ran = steer_cli(*asked, "--skip-unreadable")
    assert ran.code == 0, ran.err
    said = [line for line in ran.err.splitlines() if line.startswith("steer: ")]
    assert len(said) == 1
    assert "were left out" in said[0]
    assert "0.png" in said[0]
    data = json.loads(ran.out)
    assert data["examples" if command[0] == "fit" else "pictures"] == 7


def test_data_that_is_not_in_order(steer_cli, tiny_clip, pets, tmp_path):
    def fails(source, *more):
        asked = ("fit", "coop", "--model", tiny_clip, "--data", source, "--out", tmp_path / "out")
        ran = steer_cli(*asked, "--config", "context=2", *more)
        assert (ran.code, "--debug" in ran.err, ran.err.count("\n")) == (1, False, 1)
        return ran.err

    shutil.copytree(pets / "val", tmp_path / "empty")
    (tmp_path / "empty" / "bird").mkdir()
    assert "classes without a picture: bird" in fails(tmp_path / "empty")
    shutil.copytree(pets / "val", tmp_path / "long")
    (tmp_path / "long" / "dog").rename(tmp_path / "long" / "_".join(["dog"] * 25))
    error = fails(tmp_path / "long")
    assert "dog dog dog" in error
    assert "reads at most 24" in error
    shutil.copytree(pets, tmp_path / "odd")
    (tmp_path / "odd" / "train").rename(tmp_path / "odd" / "all")
    assert "say --read split='all'" in fails(tmp_path / "odd")
    (tmp_path / "names.json").write_text("{")
    assert "names.json is not JSON" in fails(pets, "--read", f"names={tmp_path / 'names.json'}")
    assert "--read names: cannot read no.json" in fails(pets, "--read", "names=no.json")
    (tmp_path / "t.csv").write_text("file,label\na.png,cat\n")
    assert "--read image=..." in fails(tmp_path / "t.csv")


def test_names_of_classes(tmp_path):
    (tmp_path / "a.txt").write_text(" red apple \n\nfire, extinguisher\n")
    (tmp_path / "a.json").write_text('["x", "y"]')
    (tmp_path / "b.json").write_text('{"x": 1}')
    (tmp_path / "c.json").write_text("no")
    assert class_names(str(tmp_path / "a.txt")) == ["red apple", "fire, extinguisher"]
    assert class_names(str(tmp_path / "a.json")) == ["x", "y"]
    assert class_names("red apple, cat,") == ["red apple", "cat"]
    for given in (tmp_path / "b.json", tmp_path / "c.json", ",", "a,b,a"):
        with pytest.raises(SteerError, match="--classes"):
            class_names(str(given))
