"""`steer fit` on labelled pictures saves what the library would have fitted, on the pictures that were asked for."""

from __future__ import annotations

import csv
import json
import shutil
from functools import reduce

import pytest
import torch

import steer
from steer._loading import load_model
from steer.data import few_shot, read_labelled

SMALL = ("--config", "context=2", "--set", "epochs=2", "--set", "batch_size=4", "--set", "lr=0.1")
HOW = {"epochs": 2, "batch_size": 4, "lr": 0.1, "progress": False}


def fit(steer_cli, tiny_clip, name, data, out, *more):
    ran = steer_cli("fit", name, "--model", tiny_clip, "--data", data, "--out", out, *more, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def accuracy(method, examples) -> float:
    labels = method.predict([one.images[0] for one in examples]).labels
    return sum(label == one.answer for label, one in zip(labels, examples, strict=True)) / len(examples)


def same(one, other) -> bool:
    keys = one.tensors.keys() == other.tensors.keys()
    return keys and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_saved_method_is_the_one_that_the_library_fits(steer_cli, tiny_clip, pets, tmp_path):
    data = fit(steer_cli, tiny_clip, "coop", pets, tmp_path / "coop", *SMALL, "--shots", 3, "--seed", 5)
    model, processor = load_model(str(tiny_clip))
    shots = few_shot(read_labelled(pets, split="train"), 3, seed=5)
    classes = ["cat", "dog", "fire extinguisher", "red apple"]
    mine = steer.create("coop", classes=classes, context=2).fit(model, processor, shots, seed=5, **HOW)
    saved = steer.load(tmp_path / "coop", model)
    assert saved == mine
    assert same(saved, mine)
    alone = steer.create("zero_shot", classes=classes).bind(model, processor)
    assert data["before"]["accuracy"] == accuracy(alone, shots)
    assert data["after"]["accuracy"] == accuracy(mine, shots)
    assert (data["examples"], data["dev_examples"], data["seed"]) == (12, 0, 5)
    assert (data["classes"], data["numbers"]) == (classes, mine.number_of_parameters())
    assert data["measured_on"] == "fitted on"
    assert {path.name for path in (tmp_path / "coop").iterdir()} == set(steer.files.FILE_NAMES)


def test_dev_is_another_part_of_the_folder_and_what_is_chosen_and_measured_by(steer_cli, tiny_clip, pets, tmp_path):
    # So fast that the last tensors are not the best; the part that is asked for of --data is not taken for --dev.
    wild = ("--set", "lr=500", "--set", "epochs=4", "--dev", pets, "--read", "split=train")
    data = fit(steer_cli, tiny_clip, "coop", pets, tmp_path / "coop", *SMALL, *wild)
    model, processor = load_model(str(tiny_clip))
    examples, dev = read_labelled(pets, split="train"), read_labelled(pets, split="val")
    last, mine = (
        steer.create("coop", context=2).fit(model, processor, examples, dev=held, **{**HOW, "lr": 500.0, "epochs": 4})
        for held in (None, dev)
    )
    saved = steer.load(tmp_path / "coop", model)
    assert same(saved, mine)
    assert not same(saved, last)
    assert (data["examples"], data["dev_examples"], data["measured_on"]) == (20, 8, "dev")
    assert data["after"]["accuracy"] == accuracy(mine, dev)


def test_the_table_says_what_it_was_measured_on(steer_cli, tiny_clip, pets, tmp_path):
    ran = steer_cli("fit", "tip_adapter", "--model", tiny_clip, "--data", pets, "--out", tmp_path / "tip")
    assert ran.code == 0, ran.err
    for fact in ("tip_adapter", "20", "(fitted on)", "on the very pictures", f"saved: {tmp_path / 'tip'}"):
        assert fact in ran.out
    assert steer.load(tmp_path / "tip").tensors["cache.labels"].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


@pytest.mark.parametrize(
    "more, classes",
    [
        ((), ["cat", "dog", "fire extinguisher", "red apple"]),
        (("--base",), ["cat", "dog"]),
        (("--classes", "red apple,cat"), ["red apple", "cat"]),
        (("--classes", "red apple,cat,dog", "--base"), ["cat", "dog"]),
        (("--config", "classes=red apple,cat,dog,fire extinguisher"), ["red apple", "cat", "dog", "fire extinguisher"]),
    ],
)
def test_which_classes(steer_cli, tiny_clip, pets, tmp_path, more, classes):
    data = fit(steer_cli, tiny_clip, "tip_adapter", pets, tmp_path / "tip", *more, "--shots", 2)
    saved = steer.load(tmp_path / "tip")
    assert (data["classes"], saved.classes, saved.fitted_classes) == (classes,) * 3
    assert data["examples"] == 2 * len(classes)
    drawn = [one for one in few_shot(read_labelled(pets, split="train"), 2) if one.answer in classes]
    bound = saved.bind(*load_model(str(tiny_clip)))
    with torch.no_grad():
        stream = bound.bound()
        own = stream.image_features(stream.pixels([one.images[0] for one in drawn]))
    assert torch.allclose(saved.tensors["cache.keys"], torch.nn.functional.normalize(own, dim=-1), atol=1e-6)


def test_classes_from_a_file_and_a_table_with_other_columns(steer_cli, tiny_clip, pets, tmp_path):
    with (tmp_path / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "kind"])
        for path in sorted(pets.glob("train/*/*.png")):
            rows.writerow([path.relative_to(pets), {"cat": 0, "dog": 1}.get(path.parent.name, 2)])
    (tmp_path / "names.json").write_text(json.dumps(["cat", "dog", "big apple"]))
    (tmp_path / "classes.txt").write_text("big apple\n\ncat\n")
    read = [
        f"--read={pair}" for pair in ("image=file", "label=kind", f"root={pets}", f"names={tmp_path / 'names.json'}")
    ]
    classes = ("--classes", tmp_path / "classes.txt")
    for source in (tmp_path, tmp_path / "train.csv"):
        data = fit(steer_cli, tiny_clip, "tip_adapter", source, tmp_path / "tip", *read, *classes)
        assert (data["classes"], data["examples"]) == (["big apple", "cat"], 15)


def test_sentences_and_augment_reach_the_fit(steer_cli, tiny_clip, pets, tmp_path):
    depths = {"text_depth": 2, "vision_depth": 2, "context": 2}
    config = [f"--config={key}={value}" for key, value in depths.items()]
    told = {name: [f"a drawing of a {name}."] for name in ("cat", "dog", "fire extinguisher", "red apple")}
    (tmp_path / "told.json").write_text(json.dumps(told))
    more = (*config, *SMALL[2:], "--sentences", tmp_path / "told.json", "--augment", "crop", "--shots", 2)
    fit(steer_cli, tiny_clip, "coprompt", pets, tmp_path / "out", *more)
    model, processor = load_model(str(tiny_clip))
    shots, saved = few_shot(read_labelled(pets, split="train"), 2), steer.load(tmp_path / "out", model)
    for sentences, augment, equal in ((told, "crop", True), (None, "crop", False), (told, "none", False)):
        mine = steer.create("coprompt", classes=sorted(told), **depths)
        mine.fit(model, processor, shots, sentences=sentences, augment=augment, **HOW)
        assert same(mine, saved) == equal


@pytest.mark.parametrize(
    "arguments, facts",
    [
        (("coop", "--data", "PETS", "--shots", 6), ("fewer than 6", "cat (5)", "--allow-fewer")),
        (("coop", "--data", "PETS", "--classes", "cat,dgo"), ("'dgo'", "did you mean 'dog'", "PETS has no picture")),
        (("coop", "--data", "PETS", "--classes", "cat,cat"), ("cat more than once",)),
        (("coop", "--data", "PETS", "--classes", "none.txt"), ("--classes", "cannot read none.txt")),
        (
            ("coop", "--data", "PETS", "--classes", "cat", "--config", "classes=cat"),
            ("--classes and --config classes",),
        ),
        (("coop", "--data", "PETS", "--read", "labl=x"), ("'labl'", "did you mean 'label'")),
        (("coop", "--data", "PETS", "--read", "split=tran"), ("'tran'", "did you mean 'train'")),
        (("coop", "--data", "PETS/train", "--dev", "PETS/train"), ("the same pictures",)),
        (("coop", "--data", "PETS", "--set", "learning_rate=1"), ("'learning_rate'", "lr, epochs")),
        (("coop", "--data", "PETS", "--set", "lr=fast"), ("--set lr=fast", "must be float")),
        (("coop", "--data", "PETS", "--set", "augment=crop"), ("'augment'",)),
        (("coop", "--data", "PETS", "--augment", "blur"), ("augment", "'blur'", "crop")),
        (("coop", "--data", "PETS", "--sentences", "none.json"), ("--sentences", "cannot read none.json")),
        (("coop", "--data", "PETS", "--sentences", "TOLD"), ("sentences are for", "'none'")),
        (("coop", "--data", "PETS", "--config", "context=-1"), ("context must be", "at least 0")),
        (("coop", "--data", "PETS", "--config", "context=30"), ("'cat'", "30", "reads at most 24")),
        (("coop", "--data", "zoo:foood"), ("'foood'", "did you mean 'food'")),
        (("coop", "--data", "zoo:food", "--read", "image=x"), ("'image'", "style")),
        (("coop", "--data", "zoo:food", "--read", "style=fluen"), ("style 'fluen'", "nearest: 'fluent'")),
        (("coop", "--data", "PETS", "--dev", "OTHERS"), ("1 classes", "'owl'", "--classes")),
        (("coop", "--data", "PETS", "--dev", "OTHERS", "--classes", "dog"), ("no picture of any class",)),
        (("coop", "--data", "nowhere"), ("nowhere",)),
        (("zero_shot", "--data", "PETS"), ("'zero_shot' learns nothing", "steer eval")),
        (("icv", "--data", "zoo:position", "--shots", 4), ("'icv' reads questions with answers", "--shots")),
        (("icv", "--data", "zoo:position", "--classes", "a"), ("--classes says nothing to it",)),
        (("icv", "--data", "zoo:position", "--augment", "crop"), ("'icv' takes no augment", "--augment")),
    ],
)
def test_errors_say_how_to_go_on(steer_cli, tiny_clip, pets, tmp_path, arguments, facts):
    (tmp_path / "told.json").write_text('{"cat": ["a cat."]}')
    for name in ("cat", "owl"):
        shutil.copytree(pets / "val" / "cat", tmp_path / "others" / name)
    there = {"PETS": pets, "TOLD": tmp_path / "told.json", "OTHERS": tmp_path / "others"}
    given = [reduce(lambda word, name: word.replace(name, str(there[name])), there, str(one)) for one in arguments]
    ran = steer_cli("fit", given[0], "--model", tiny_clip, *given[1:], "--out", tmp_path / "out")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "--debug" not in ran.err  # expected, so no trace is offered
    assert all(fact.replace("PETS", str(pets)) in ran.err for fact in facts), ran.err
    assert not (tmp_path / "out").exists()


def test_only_the_first_process_prints_and_writes(steer_cli, tiny_clip, pets, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    ran = steer_cli("fit", "tip_adapter", "--model", tiny_clip, "--data", pets, "--shots", 1, "--out", tmp_path / "tip")
    assert (ran.code, ran.out) == (0, "")
    assert not (tmp_path / "tip").exists()


def test_names_that_leave_no_room_for_a_hand_written_prompt_have_no_number_before(steer_cli, tiny_clip, pets, tmp_path):
    """The model reads 24 tokens: 18 words with a start and an end and one learned token, not with "a photo of a ."."""
    for name in ("cat", " ".join(["dog"] * 18)):
        shutil.copytree(pets / "val" / "cat", tmp_path / "long" / name)
    more = ("--config", "context=1", "--set", "epochs=1")
    data = fit(steer_cli, tiny_clip, "coop", tmp_path / "long", tmp_path / "out", *more)
    assert data["before"] is None
    assert 0 <= data["after"]["accuracy"] <= 1


def test_a_model_that_names_no_classes_is_refused(steer_cli, pets, tmp_path):
    ran = steer_cli("fit", "coop", "--model", "tiny-vlm", "--data", pets, "--out", tmp_path / "out")
    assert ran.code == 1
    assert "LlavaForConditionalGeneration" in ran.err
    assert "score" in ran.err


def test_the_shipped_model_and_pictures(steer_cli, tmp_path):
    few = ("--classes", "banana,red apple,grapes,pizza", "--shots", 2)
    data = fit(steer_cli, "tiny-clip", "tip_adapter", "zoo:food", tmp_path / "tip", *few)
    names = ["banana", "red apple", "grapes", "pizza"]
    pairs = [one for one in steer.zoo.labelled("food", "train", per_class=2) if one[1] in names]
    mine = steer.create("tip_adapter", classes=names).fit(
        *steer.zoo.load("tiny-clip"), few_shot(read_labelled(pairs), 2)
    )
    assert same(steer.load(tmp_path / "tip"), mine)
    assert data["examples"] == 8


def test_methods_are_listed(steer_cli):
    listed = {one["name"] for one in json.loads(steer_cli("methods", "--json").out)}
    assert {"coop", "cocoop", "maple", "coprompt", "kgcoop", "promptsrc", "clip_adapter", "zero_shot"} <= listed
