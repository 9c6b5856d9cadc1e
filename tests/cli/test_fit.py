"""`steer fit` saves what the library would have fitted, says what it did, and goes on after an interrupt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import steer
from steer.cli._settings import fit_hints, parse
from steer.training import Learned

ASKED = ("--model", "tiny-vlm", "--data", "zoo:position", "--limit", 12)
SMALL = (*ASKED, "--config", "layer=2", "--config", "shots=2")


@dataclass(kw_only=True)
class Shift(Learned):
    """Adds one vector after one layer."""

    name: ClassVar[str] = "shift"
    paper: ClassVar[str] = "https://example.org/shift"
    summary: ClassVar[str] = "Adds one vector after one layer."

    def initial(self, model_map, generator):
        return {"vector": torch.zeros(model_map.tower().width)}

    def interventions(self, model_map):
        return [steer.Intervention(steer.sites.resid_out([2]), steer.ops.Add(self.tensors["vector"]))]

    def fit(self, model, processor, examples, *, seed=0, dev=None, folder=None, progress=True, **options):
        if os.environ.get("SHIFT_STOPS"):
            _stop_after(2)
        return super().fit(model, processor, examples, seed=seed, dev=dev, folder=folder, progress=progress, **options)


def _stop_after(steps: int) -> None:
    """Interrupt the fit in its optimiser's step, as Ctrl-C would."""
    step = torch.optim.AdamW.step
    left = [steps]

    def interrupted(self, *arguments, **more):
        if not left[0]:
            torch.optim.AdamW.step = step
            raise KeyboardInterrupt
        left[0] -= 1
        return step(self, *arguments, **more)

    torch.optim.AdamW.step = interrupted


@pytest.fixture
def shift(plugged):
    class Plugin:
        @steer.hookimpl
        def steer_register_methods(self, registry):
            registry.add(Shift)

    plugged(Plugin())


def test_the_saved_method_is_the_one_that_the_library_fits(steer_cli, tmp_path):
    ran = steer_cli(
        "fit", "task_vector", *SMALL, "--seed", 3, "--set", "batch_size=4", "--out", tmp_path / "tv", "--json"
    )
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    model, processor = steer.zoo.load()
    pool, dev = steer.fitting.hold_out(steer.zoo.examples("position", "demo", 12, seed=3), seed=3)
    mine = steer.create("task_vector", layer=2, shots=2).fit(model, processor, pool, seed=3, dev=dev, batch_size=4)
    saved = steer.load(tmp_path / "tv", model)
    assert saved == mine
    assert all(torch.equal(saved.tensors[name], mine.tensors[name]) for name in mine.tensors)
    right = [one.answer for one in dev]
    before = steer.prompts.write(model, processor, [steer.prompts.Prompt(one) for one in dev])
    for key, answers in (("before", before), ("after", mine.answer(model, processor, dev))):
        assert data[key]["accuracy"] == sum(a == b for a, b in zip(answers, right, strict=True)) / len(dev)
    assert (data["examples"], data["dev_examples"], data["seed"]) == (9, 3, 3)
    assert data["numbers"] == sum(tensor.numel() for tensor in mine.tensors.values())
    assert {path.name for path in (tmp_path / "tv").iterdir()} == set(steer.files.FILE_NAMES)


def test_data_from_a_folder_with_its_own_dev_file_and_a_table_at_the_end(steer_cli, tmp_path):
    steer.data.write(tmp_path / "data", steer.zoo.examples("position", "demo", 8), "train")
    steer.data.write(tmp_path / "data", steer.zoo.examples("position", "dev", 5), "dev")
    data = ("--data", tmp_path / "data", "--dev", tmp_path / "data")
    ran = steer_cli("fit", "icv", "--model", "tiny-vlm", *data, "--out", tmp_path / "icv")
    assert ran.code == 0, ran.err
    for fact in ("icv", "8", "dev: 5 examples,", f"saved: {tmp_path / 'icv'}"):
        assert fact in ran.out
    assert steer.load(tmp_path / "icv").provenance["data"]["examples"] == 8


@pytest.mark.parametrize(
    "arguments, facts",
    [
        (("task_vectr", *SMALL), ("task_vectr", "did you mean 'task_vector'")),
        (("task_vector", *SMALL, "--config", "shot=2"), ("'shot'", "did you mean 'shots'")),
        (("task_vector", *SMALL, "--config", "shots=few"), ("--config shots=few", "must be int")),
        (("task_vector", *SMALL, "--config", "shots"), ("--config takes key=value", "'shots'")),
        (("task_vector", *SMALL, "--set", "batchsize=2"), ("'batchsize'", "did you mean 'batch_size'")),
        (("task_vector", *SMALL, "--set", "seed=2"), ("'seed'", "known: batch_size")),
        (("task_vector", *SMALL, "--checkpoints", "c"), ("no checkpoints", "--checkpoints")),
        (("task_vector", *SMALL, "--device", "abacus"), ("no device 'abacus'",)),
        (("task_vector", *SMALL, "--dtype", "float8"), ("no dtype 'float8'", "bfloat16")),
        (("task_vector", "--model", "tiny-vlm", "--data", "zoo:colur"), ("'colur'", "did you mean 'colour'")),
        (("task_vector", "--model", "tiny-vlm", "--data", "nowhere"), ("nowhere",)),
        (("task_vector", *SMALL, "--limit", "1"), ("1 example", "--dev", "held out")),
        (("shift", *ASKED, "--set", "learning_rate=1"), ("'learning_rate'", "known: lr, epochs")),
        (("shift", *ASKED, "--set", "epochs=many"), ("--set epochs=many", "must be int")),
    ],
)
def test_errors_say_what_there_is(steer_cli, tmp_path, shift, arguments, facts):
    ran = steer_cli("fit", *arguments, "--out", tmp_path / "out")
    assert ran.code == 1
    assert all(fact in ran.err for fact in facts), ran.err
    assert not (tmp_path / "out").exists()


def test_several_files_and_none_of_the_name_is_said_with_a_way_on(steer_cli, tmp_path):
    for split in ("a", "b"):
        steer.data.write(tmp_path / "data", steer.zoo.examples("position", "demo", 4), split)
    ran = steer_cli("fit", "icv", "--model", "tiny-vlm", "--data", tmp_path / "data", "--out", tmp_path / "icv")
    assert ran.code == 1
    assert "a, b and no train.jsonl" in ran.err
    assert str(tmp_path / "data" / "a.jsonl") in ran.err


LEARNED = ("fit", "shift", *ASKED, "--set", "lr=0.05", "--set", "batch_size=4", "--set", "epochs=2")


def test_an_interrupted_fit_goes_on_with_the_same_command(steer_cli, tmp_path, shift, monkeypatch):
    more = ("--set", "checkpoint_every=1", "--set", "patience=None")
    whole = steer_cli(*LEARNED, *more, "--out", tmp_path / "whole", "--json")
    assert whole.code == 0, whole.err
    assert not (tmp_path / "whole" / "checkpoints").exists()
    monkeypatch.setenv("SHIFT_STOPS", "1")
    cut = steer_cli(*LEARNED, *more, "--out", tmp_path / "cut")
    assert cut.code == 130
    assert f"the same command goes on from {tmp_path / 'cut' / 'checkpoints'}" in cut.err
    assert not (tmp_path / "cut" / "steer_method.json").exists()
    monkeypatch.delenv("SHIFT_STOPS")
    steps, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **more: (steps.append(1), step(*args, **more))[1])
    on = steer_cli(*LEARNED, *more, "--out", tmp_path / "cut", "--keep-checkpoints")
    assert on.code == 0, on.err
    assert len(steps) == 2 * 3 - 2
    assert any((tmp_path / "cut" / "checkpoints").iterdir())
    one, other = (steer.load(tmp_path / name) for name in ("whole", "cut"))
    assert torch.equal(one.tensors["vector"], other.tensors["vector"])
    assert one.tensors["vector"].abs().max() > 0


def test_a_folder_of_checkpoints_that_the_user_named_stays(steer_cli, tmp_path, shift):
    ran = steer_cli(*LEARNED, "--set", "max_steps=1", "--out", tmp_path / "out", "--checkpoints", tmp_path / "mine")
    assert ran.code == 0, ran.err
    assert any((tmp_path / "mine").iterdir())
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(steer.files.FILE_NAMES)


def test_only_the_first_process_prints_and_writes(steer_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    ran = steer_cli("fit", "icv", *ASKED, "--out", tmp_path / "icv")
    assert (ran.code, ran.out) == (0, "")
    assert not (tmp_path / "icv").exists()


def test_it_is_a_module_for_accelerate_launch():
    done = subprocess.run([sys.executable, "-m", "steer", "fit", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage: steer fit" in done.stdout


@pytest.mark.parametrize(
    "text, hint, value",
    [
        ("3", int, 3),
        ("3", float, 3.0),
        ("1e-3", float, 1e-3),
        ("3", str, "3"),
        ("all", tuple[int, ...] | str, "all"),
        ("1,2", tuple[int, ...], (1, 2)),
        ("[1,2]", tuple[int, ...], (1, 2)),
        ("1", tuple[int, ...], (1,)),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("None", int | None, None),
        ("null", int | None, None),
        ("None", str, "None"),
        ("true", bool, True),
        ("False", bool, False),
        ('{"ce": 1, "mse": 0.5}', dict[str, float], {"ce": 1.0, "mse": 0.5}),
        ("a=b", str, "a=b"),
        ("", str, ""),
    ],
)
def test_a_value_is_read_as_its_annotation_says(text, hint, value):
    found = parse([f"key={text}"], {"key": hint}, "--config", "field")["key"]
    assert found == value
    assert type(found) is type(value)


def test_annotations_that_only_a_type_checker_knows_leave_the_names_of_options():
    class Own(Shift):
        def fit(self, model, processor, examples, *, seed: int = 0, passes: KnownToCheckersOnly = 1):  # noqa: F821
            """Nothing."""

    assert fit_hints(Own) == {"passes": Any}
    with pytest.raises(steer.SteerError, match="'passs'.*did you mean 'passes'"):
        parse(["passs=2"], fit_hints(Own), "--set", "option")
    assert parse(["passes=2"], fit_hints(Own), "--set", "option") == {"passes": 2}
