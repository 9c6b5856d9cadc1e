"""A fit in processes of its own: killed on the way, and shared between two."""

from __future__ import annotations

import json
import time

import pytest
import torch
from safetensors.torch import load_file

from steer.training import _checkpoint

from .processes import finish, kill, start, together

LOSSES = {"kl_answer": 1.0, "mse": 0.1, "ce": 0.5}
PATIENT = 240


def test_a_fit_that_is_killed_goes_on_and_ends_in_the_same_bits(tmp_path):
    options = {"losses": LOSSES, "lr": 0.05, "batch_size": 3, "max_steps": 30, "checkpoint_every": 1, "patience": None}

    def fit(name: str, folder: str) -> list[str]:
        given = {**options, "folder": str(tmp_path / f"{folder}-folder")}
        return ["-m", "tests.training.fit_script", str(tmp_path / name), "slow", json.dumps(given)]

    killed, whole = start(fit("never", "cut")), start(fit("whole", "whole"), STEER_TEST_QUICK="1")
    try:
        checkpoint, until = tmp_path / "cut-folder" / _checkpoint.NAME, time.monotonic() + PATIENT
        while not checkpoint.exists():
            assert killed.poll() is None, killed.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        kill(killed)
    assert not (tmp_path / "never").exists()
    finish(whole)
    finish(start(fit("rest", "cut"), STEER_TEST_QUICK="1"))
    rest, truth = load_file(tmp_path / "rest"), load_file(tmp_path / "whole")
    assert torch.equal(rest["vector"], truth["vector"])
    histories = [json.loads((tmp_path / f"{name}.json").read_text())["history"] for name in ("rest", "whole")]
    assert histories[0] == histories[1]


def test_two_processes_learn_what_one_does(tmp_path):
    """An odd number of examples, so that shares differ in size; a folder, so that the teacher's work is shared."""
    given = {"losses": LOSSES, "examples": 7, "dev": [], "lr": 0.02, "batch_size": 3, "max_steps": 6}

    def script(name: str, folder: str) -> list[str]:
        options = json.dumps({**given, "folder": str(tmp_path / f"{folder}-folder")})
        return ["-m", "tests.training.fit_script", str(tmp_path / name), "shift", options]

    finish(start(script("one", "one")))
    together(lambda attempt: script("two", f"two-{attempt}"))
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one["vector"].abs().max() > 0.01
    torch.testing.assert_close(two["vector"], one["vector"], rtol=1e-3, atol=1e-4)
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (first["processes"], second["processes"]) == (1, 2)
    assert second["steps"] == first["steps"]
    for a, b in zip(second["history"], first["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-3)
