"""`steer predict` says what the library predicts, and which pictures it cannot read."""

from __future__ import annotations

import json
import shutil

import pytest

import steer
from steer._loading import load_model
from steer.data import opened, read_labelled

from .conftest import COLOURS


@pytest.fixture(scope="module")
def saved(tiny_clip, pets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model, train = load_model(str(tiny_clip)), read_labelled(pets, split="train")
    steer.create("tip_adapter", cache=20.0).fit(*model, train).save_pretrained(folder / "tip")
    own = steer.create("coop", context=2, class_specific=True)
    own.fit(*model, train, epochs=1, progress=False).save_pretrained(folder / "own")
    return folder


def expected(folder, tiny_clip, paths, classes=None):
    method = steer.load(folder)
    if classes is not None:
        method.set_classes(classes)
    return method.bind(*load_model(str(tiny_clip))).predict([opened(path) for path in paths])


@pytest.mark.parametrize("more, classes", [((), None), (("--classes", "dog, big apple"), ["dog", "big apple"])])
def test_it_is_what_the_library_predicts(steer_cli, tiny_clip, pets, saved, more, classes):
    # A folder is taken with what is below it, in the order of the names.
    given = [pets / "test", pets / "val" / "dog" / "1.png"]
    ran = steer_cli(
        "predict",
        "--method",
        saved / "tip",
        *given,
        "--model",
        tiny_clip,
        "--top",
        3,
        "--json",
        "--batch-size",
        5,
        *more,
    )
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    paths = [*sorted((pets / "test").glob("*/*.png")), given[1]]
    assert [one["picture"] for one in data["predictions"]] == list(map(str, paths))
    found = expected(saved / "tip", tiny_clip, paths, classes)
    assert [one["class"] for one in data["predictions"]] == found.labels
    for one, best in zip(data["predictions"], found.top(3), strict=True):
        assert [each["class"] for each in one["top"]] == [name for name, _ in best]
        assert [each["probability"] for each in one["top"]] == pytest.approx([value for _, value in best], abs=1e-5)
        assert one["probability"] == one["top"][0]["probability"]
    assert data["classes"] == (classes or list(COLOURS))
    assert data["unreadable"] == []


def test_a_table_of_labels(steer_cli, tiny_clip, pets, saved):
    path = pets / "test" / "dog" / "0.png"
    found = expected(saved / "tip", tiny_clip, [path])
    ran = steer_cli("predict", "--method", saved / "tip", path, "--model", tiny_clip)
    assert ran.code == 0, ran.err
    row = next(line for line in ran.out.splitlines() if "0.png" in line)
    assert found.labels == ["dog"]
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [str(path), "dog", f"{found.top(1)[0][0][1]:.3f}"]
    more = steer_cli("predict", "--method", saved / "tip", path, "--model", tiny_clip, "--top", 2).out
    name, value = found.top(2)[0][1]
    assert f"{name} {value:.3f}" in more


def test_unreadable_pictures_are_named_and_skipped_only_on_request(steer_cli, tiny_clip, pets, saved, tmp_path):
    shutil.copy(pets / "test" / "cat" / "0.png", tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / ".hidden").write_bytes(b"not looked at")
    asked = ("predict", "--method", saved / "tip", tmp_path, tmp_path / "none.png", "--model", tiny_clip, "--json")
    ran = steer_cli(*asked)
    assert (ran.code, ran.out) == (1, "")
    assert all(
        fact in ran.err for fact in ("2 of 3 pictures cannot be read", "bad.png", "none.png", "--skip-unreadable")
    )
    ran = steer_cli(*asked, "--skip-unreadable")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert [one["picture"] for one in data["predictions"]] == [str(tmp_path / "good.png")]
    assert [name for name in ("bad.png", "none.png") for one in data["unreadable"] if name in one] == [
        "bad.png",
        "none.png",
    ]
    assert ran.err.count("steer: left out: ") == 2


@pytest.mark.parametrize(
    "arguments, facts",
    [
        (("OWN", "PETS/test", "--classes", "cat,bird"), ("own for each of 4 classes", "it has none for others")),
        (("TIP", "PETS/test", "--classes", "cat,cat"), ("cat more than once",)),
        (("TIP", "EMPTY"), ("holds no pictures",)),
        (("TIP", "EMPTY/none.png", "--skip-unreadable"), ("none of the pictures can be read",)),
        (("./nowhere", "PETS/test"), ("nowhere",)),
    ],
)
def test_errors_say_what_is_wrong(steer_cli, tiny_clip, pets, saved, tmp_path, arguments, facts):
    places = {"OWN": saved / "own", "TIP": saved / "tip", "PETS": pets, "EMPTY": tmp_path}
    given = []
    for one in arguments:
        first, slash, rest = one.partition("/")
        given.append(f"{places[first]}{slash}{rest}" if first in places else one)
    ran = steer_cli("predict", "--method", *given, "--model", tiny_clip)
    assert ran.code == 1
    assert "--debug" not in ran.err
    assert all(fact in ran.err for fact in facts), ran.err


def test_a_method_that_answers_questions_is_sent_to_generate(steer_cli, pets, tmp_path):
    steer.create("icv").fit(*steer.zoo.load(), steer.zoo.examples("position", "demo", 8)).save_pretrained(tmp_path)
    ran = steer_cli("predict", "--method", tmp_path, pets / "test", "--model", "tiny-vlm")
    assert ran.code == 1
    assert f"{tmp_path} does not name classes; steer generate --model M --method {tmp_path}" in ran.err


def test_a_model_that_the_method_was_not_made_for_is_refused(steer_cli, pets, saved):
    ran = steer_cli("predict", "--method", saved / "tip", pets / "test", "--model", "tiny-clip")
    assert ran.code == 1
    assert "does not fit CLIPModel" in ran.err


def test_a_method_that_needs_no_fitting_is_given_by_name_with_its_classes(steer_cli, tiny_clip, pets):
    words = ["predict", "--model", tiny_clip, "--method", "zero_shot", "--json", pets / "test" / "cat"]
    bare = steer_cli(*words)
    assert (bare.code, bare.err.count("\n")) == (1, 1)
    assert "--classes" in bare.err
    named = steer_cli(*words, "--classes", "cat,dog", "--config", "templates=a drawing of a {}.")
    assert named.code == 0, named.err
    said = json.loads(named.out)
    assert said["classes"] == ["cat", "dog"]
    other = json.loads(steer_cli(*words, "--classes", "cat,dog").out)
    model, processor = load_model(str(tiny_clip))
    truth = steer.create("zero_shot", templates=("a drawing of a {}.",))
    truth.set_classes(["cat", "dog"])
    truth.bind(model, processor)
    pictures = sorted((pets / "test" / "cat").iterdir())
    chances = truth.predict([steer.data.opened(path) for path in pictures]).probabilities.amax(-1)
    got = [one["probability"] for one in said["predictions"]]
    assert got == pytest.approx(chances.tolist(), abs=1e-5)
    assert got != pytest.approx([one["probability"] for one in other["predictions"]], abs=1e-7)
