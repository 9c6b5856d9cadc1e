"""Two processes learn what one does: each with its own model, or with the model's weights spread over them (FSDP2)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import steer
from steer.cli import main
from tests.training.processes import PATIENT, ROOT, finish, kill, launcher, start, together

from . import fit_script

CASES = [(name, "whole") for name in fit_script.FITS] + [(name, "spread") for name in fit_script.SHARDED]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    """What two processes learned."""
    folder = tmp_path_factory.mktemp("together")
    together(lambda attempt: ["-m", "tests.distributed.fit_script", str(folder)])
    return folder


@pytest.fixture(scope="module")
def alone():
    """What this process learns by itself."""
    loaded = {name: steer.zoo.load(name) for name in set(fit_script.MODELS.values())}
    return {name: fit(*loaded[fit_script.MODELS[name]]).tensors for name, fit in fit_script.FITS.items()}


@pytest.mark.parametrize("name, kind", CASES)
def test_two_processes_learn_what_one_does(found, alone, name, kind):
    first, second = (load_file(found / f"{name}-{kind}-{process}.safetensors") for process in range(2))
    assert first.keys() == alone[name].keys()
    for key, value in alone[name].items():
        torch.testing.assert_close(first[key], value.cpu(), rtol=1e-4, atol=1e-5)
        assert torch.equal(first[key], second[key])


def test_a_fit_on_the_command_line_is_killed_and_goes_on_with_spread_weights(tmp_path):
    out, checkpoint = tmp_path / "out", tmp_path / "out" / "checkpoints" / "fit.safetensors"
    words = ["-m", "steer", "fit", "live", "--model", "tiny-vlm", "--data", "zoo:colour", "--limit", "9", "--json"]
    words += ["--set", "max_steps=30", "--set", "batch_size=3", "--set", "checkpoint_every=1", "--set", "lr=0.01"]
    words += ["--set", "patience=null", "--config", "shots=2", "--out"]
    killed, until = start([*launcher(), *words, str(out)]), time.monotonic() + PATIENT
    try:
        while not checkpoint.exists():
            assert killed.poll() is None, killed.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        kill(killed)
    assert not (out / "steer.json").exists()
    alone = start([*words, str(tmp_path / "alone")])
    together(lambda attempt: [*words, str(out)], ROOT / "docs/configs/fsdp2.yaml")
    finish(alone)
    first, second = (steer.load(folder) for folder in (out, tmp_path / "alone"))
    for key, value in second.tensors.items():
        torch.testing.assert_close(first.tensors[key], value, rtol=1e-3, atol=1e-4)
    told = [[one["step"] for one in made.provenance["training"]["history"]] for made in (first, second)]
    assert told[0] == told[1]
    assert not (out / "checkpoints").exists()


def test_a_model_that_is_split_by_tensors_is_refused(monkeypatch):
    model, processor = steer.zoo.load()
    monkeypatch.setattr(model, "_tp_size", 2)
    for call in (lambda: fit_script.live(model, processor), lambda: steer.training.shard(model)):
        with pytest.raises(steer.SteerError, match="split by tensors"):
            call()


@pytest.mark.parametrize("command", ["fit live --out x", "eval"])
def test_deepspeed_is_refused_on_the_command_line(monkeypatch, capsys, command):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--model", "tiny-vlm", "--data", "zoo:colour", "--limit", "8"])
    assert left.value.code == 1
    assert "fsdp2.yaml" in capsys.readouterr().err
