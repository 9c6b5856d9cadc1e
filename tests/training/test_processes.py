"""A fit in processes of its own: killed on the way, and shared between two."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steer.training import _checkpoint

ROOT = Path(__file__).parents[2]
LOSSES = {"kl_answer": 1.0, "mse": 0.1, "ce": 0.5}
PATIENT = 240


def environment(**more: str) -> dict[str, str]:
    """One thread a process, the tests importable, and nothing of a launcher around this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        kept.pop(name, None)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def start(arguments: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process that should succeed; whatever happens, it and its children are gone afterwards."""
    try:
        said, _ = process.communicate(timeout=PATIENT)
        assert process.returncode == 0, said
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """The process and its children: it was started as the leader of a group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_two_processes_learn_what_one_does(tmp_path):
    """An odd number of examples, so that shares differ in size; a folder, so that the teacher's work is shared."""
    given = {"losses": LOSSES, "examples": 7, "dev": [], "lr": 0.02, "batch_size": 3, "max_steps": 6}

    def script(name: str, folder: str) -> list[str]:
        options = json.dumps({**given, "folder": str(tmp_path / f"{folder}-folder")})
        return ["-m", "tests.training.fit_script", str(tmp_path / name), "shift", options]

    finish(start(script("one", "one")))
    # `--cpu` would start one process alone: without mpirun this is how two share the CPUs.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"]
    for attempt in range(3):  # between asking for a free port and taking it, another process may have it
        process = start([*launcher, str(free_port()), *script("two", f"two-{attempt}")])
        try:
            finish(process)
            break
        except AssertionError as error:
            if "EADDRINUSE" not in str(error) or attempt == 2:
                raise
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one["vector"].abs().max() > 0.01
    torch.testing.assert_close(two["vector"], one["vector"], rtol=1e-3, atol=1e-4)
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (first["processes"], second["processes"]) == (1, 2)
    assert second["steps"] == first["steps"]
    for a, b in zip(second["history"], first["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-3)
