"""`steer eval` on labelled pictures measures what a loop by hand measures, hand-written prompts first."""

from __future__ import annotations

import json
import math

import pytest

import steer
from steer._accuracy import harmonic_mean
from steer._evaluating import wilson
from steer._loading import load_model
from steer.data import read_labelled

ALL = ["cat", "dog", "fire extinguisher", "red apple"]
BASE, NEW = ALL[:2], ALL[2:]


@pytest.fixture(scope="module")
def model(tiny_clip):
    return load_model(str(tiny_clip))


@pytest.fixture(scope="module")
def saved(model, pets, tmp_path_factory):
    """Methods fitted on the base classes or on all, by the names of their folders."""
    folder = tmp_path_factory.mktemp("saved")
    train = read_labelled(pets, split="train")
    base = [one for one in train if one.answer in BASE]
    how = {"epochs": 2, "lr": 0.1, "progress": False}
    for name, examples, made in (
        ("coop", base, steer.create("coop", context=2)),
        ("own", base, steer.create("coop", context=2, class_specific=True)),
        ("tip", train, steer.create("tip_adapter", cache=20.0)),
        ("other", base, steer.create("coop", context=2, templates=["a drawing of a {}."])),
    ):
        made.fit(*model, examples, seed=1, **how).save_pretrained(folder / name)
    steer.create("zero_shot", classes=ALL).save_pretrained(folder / "alone")
    return folder


def run(steer_cli, tiny_clip, data, *more):
    ran = steer_cli("eval", "--model", tiny_clip, "--data", data, *more, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def by_hand(method, model, examples, classes) -> dict:
    """What is to be found, one picture at a time and from the definitions."""
    bound = method.set_classes(classes).bind(*model)
    sure, right = [], []
    for one in examples:
        row = bound.predict([one.images[0]]).probabilities[0].double()
        sure.append(float(row.max()))
        right.append(classes[int(row.argmax())] == one.answer)
    each = {}
    for name in classes:
        mine = [r for r, one in zip(right, examples, strict=True) if one.answer == name]
        if mine:
            each[name] = {"accuracy": sum(mine) / len(mine), "pictures": len(mine)}
    error = 0.0
    for low in range(15):
        inside = [i for i, value in enumerate(sure) if low / 15 < value <= (low + 1) / 15]
        if inside:
            gap = sum(right[i] for i in inside) / len(inside) - sum(sure[i] for i in inside) / len(inside)
            error += len(inside) / len(sure) * abs(gap)
    return {
        "accuracy": sum(right) / len(right),
        "interval": pytest.approx(wilson(sum(right), len(right))),
        "macro": pytest.approx(sum(one["accuracy"] for one in each.values()) / len(each)),
        "calibration_error": pytest.approx(error, abs=1e-6),
        "pictures": len(examples),
        "per_class": each,
    }


def found(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in ("name", "ms_per_picture")}


def test_every_row_is_what_a_loop_by_hand_finds(steer_cli, tiny_clip, model, pets, saved, tmp_path):
    methods = ("--method", saved / "coop", "--method", saved / "tip")
    data = run(steer_cli, tiny_clip, pets, *methods, "--batch-size", 5, "--out", tmp_path / "o.json")
    written = json.loads((tmp_path / "o.json").read_text())
    assert data["rows"] == written["rows"]
    assert (data["pictures"], data["classes"]) == (12, ALL)
    assert [row["name"] for row in data["rows"]] == ["zero-shot, 'a photo of a {}.'", "coop", "tip_adapter"]
    test = read_labelled(pets, split="test")
    ways = (steer.create("zero_shot"), steer.load(saved / "coop"), steer.load(saved / "tip"))
    for row, method in zip(data["rows"], ways, strict=True):
        assert found(row) == by_hand(method, model, test, ALL)
        predicted = method.predict([one.images[0] for one in test])
        said = [one["said"][row["name"]] for one in written["answers"]]
        assert [one["class"] for one in said] == predicted.labels
        best = predicted.probabilities.max(-1).values.tolist()
        assert [one["probability"] for one in said] == pytest.approx(best, abs=1e-5)
    assert [one["answer"] for one in written["answers"]] == [one.answer for one in test]
    assert written["answers"][0]["picture"] == str(pets / "test" / "cat" / "0.png")
    assert data["rows"][2]["accuracy"] > data["rows"][0]["accuracy"]  # colours are easy for neighbours


def test_templates_of_the_user_and_of_a_method_are_baselines(steer_cli, tiny_clip, model, pets, saved):
    mine = ("--template", "a picture of a {}.", "--template", "the big {}.")
    data = run(steer_cli, tiny_clip, pets, *mine, "--method", saved / "other")
    assert [row["name"] for row in data["rows"]] == [
        "zero-shot, 2 templates",
        "zero-shot, 'a drawing of a {}.'",
        "coop",
    ]
    test = read_labelled(pets, split="test")
    for row, templates in zip(
        data["rows"], (["a picture of a {}.", "the big {}."], ["a drawing of a {}."]), strict=False
    ):
        assert found(row) == by_hand(steer.create("zero_shot", templates=templates), model, test, ALL)


def test_base_and_new_classes_and_their_harmonic_mean(steer_cli, tiny_clip, model, pets, saved):
    methods = [part for name in ("coop", "own", "alone") for part in ("--method", saved / name)]
    rows = run(steer_cli, tiny_clip, pets, "--base-new", *methods)["rows"]
    own = f"coop ({saved / 'own'})"
    assert [row["name"] for row in rows] == [
        "zero-shot, 'a photo of a {}.'",
        f"coop ({saved / 'coop'})",
        own,
        "zero_shot",
    ]
    test = read_labelled(pets, split="test")
    halves = [(half, [one for one in test if one.answer in half]) for half in (BASE, NEW)]
    for place, make in ((0, lambda: steer.create("zero_shot")), (1, lambda: steer.load(saved / "coop"))):
        for key, (half, examples) in zip(("base", "new"), halves, strict=True):
            assert found(rows[place][key]) == by_hand(make(), model, examples, half)
        a, b = (rows[place][key]["accuracy"] for key in ("base", "new"))
        assert rows[place]["harmonic_mean"] == pytest.approx(2 / (1 / a + 1 / b) if a and b else 0.0)
    assert found(rows[2]["base"]) == by_hand(steer.load(saved / "own"), model, halves[0][1], BASE)
    assert (rows[2]["new"], rows[2]["harmonic_mean"]) == (None, None)
    assert "of its own for each" in rows[2]["why_not"]
    assert rows[3]["base"]["accuracy"] == rows[0]["base"]["accuracy"]
    ran = steer_cli("eval", "--model", tiny_clip, "--data", pets, "--base-new", "--method", saved / "own")
    for fact in ("harmonic mean", "base: 6 pictures of 2 classes", "coop: nothing on new classes: method 'coop'"):
        assert fact in ran.out


def test_what_is_not_new_is_not_measured_as_new(steer_cli, tiny_clip, pets, saved):
    ran = steer_cli("eval", "--model", tiny_clip, "--data", pets, "--base-new", "--method", saved / "tip")
    assert ran.code == 1
    assert "fitted on 2 of the 2 new classes, such as 'fire extinguisher'" in ran.err
    assert "steer fit ... --base" in ran.err


def test_some_classes_and_some_pictures(steer_cli, tiny_clip, model, pets, saved):
    data = run(steer_cli, tiny_clip, pets, "--classes", "red apple,cat", "--limit", 4, "--seed", 2)
    assert (data["classes"], data["pictures"]) == (["red apple", "cat"], 4)
    assert data == {
        **run(steer_cli, tiny_clip, pets, "--classes", "red apple,cat", "--limit", 4, "--seed", 2),
        **_ms(data),
    }
    assert sum(one["pictures"] for one in data["rows"][0]["per_class"].values()) == 4
    ran = steer_cli("eval", "--model", tiny_clip, "--data", pets, "--limit", 10)
    assert "on 10 pictures, of 4 classes" in ran.out


def _ms(data):
    return {"rows": data["rows"]}


@pytest.mark.parametrize(
    "more, facts",
    [
        (("--method", "OWN", "--data", "PETS"), ("own for each of 2 classes",)),
        (("--data", "PETS", "--template", "a photo"), ("needs one {}", "'a photo'")),
        (("--data", "PETS", "--shots", 2, "--pool", "PETS"), ("--shots says nothing",)),
        (("--data", "PETS", "--classes", "cat,bird"), ("'bird'", "has no picture of it")),
        (("--data", "PETS", "--base-new", "--classes", "cat"), ("cannot be halved",)),
        (("--data", "PETS", "--base-new", "--limit", 1), ("no picture of any of", "--limit")),
        (("--data", "zoo:position"), ("'position'", "picture set", "food")),
    ],
)
def test_errors_say_how_to_go_on(steer_cli, tiny_clip, pets, saved, more, facts):
    given = [str(one).replace("PETS", str(pets)).replace("OWN", str(saved / "own")) for one in more]
    ran = steer_cli("eval", "--model", tiny_clip, *given)
    assert ran.code == 1
    assert "--debug" not in ran.err
    assert all(fact in ran.err for fact in facts), ran.err


def test_methods_that_read_examples_keep_to_themselves(steer_cli, tiny_clip, pets, saved, tmp_path):
    steer.create("icv").fit(*steer.zoo.load(), steer.zoo.examples("position", "demo", 8)).save_pretrained(tmp_path)
    asked = ("eval", "--model", "tiny-vlm", "--data", "zoo:position")
    both = steer_cli(*asked, "--method", tmp_path, "--method", saved / "coop")
    assert (both.code, "measured on examples" in both.err, "on labelled" in both.err) == (1, True, True)
    for option in (("--classes", "a"), ("--base-new",), ("--template", "a {}"), ("--read", "label=x")):
        ran = steer_cli(*asked, *option)
        assert (ran.code, f"{option[0]} says nothing" in ran.err) == (1, True), ran.err


def test_harmonic_mean():
    assert harmonic_mean(0.5, 0.5) == 0.5
    assert harmonic_mean(0.2, 0.6) == pytest.approx(0.3)
    assert harmonic_mean(0.0, 0.9) == harmonic_mean(0.9, 0.0) == 0.0
    assert math.isclose(harmonic_mean(82.69, 63.22), 71.66, abs_tol=0.005)  # CoOp's, as printed in CoCoOp's paper
