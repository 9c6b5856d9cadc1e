"""The guard of the fuzzing sees what it is there to see."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time

import pytest
import torch

from .guard import Hang, bounded, in_time, resident, watched


def unpickles(folder):
    pickle.loads(pickle.dumps(json.JSONDecodeError))


def starts_a_program(folder):
    subprocess.run([sys.executable, "-c", ""], check=True)


def writes_beside(folder):
    (folder.parent / "beside").write_text("x")


def renames_out_of_it(folder):
    (folder / "a").write_text("x")
    os.replace(folder / "a", folder.parent / "a")


@pytest.mark.parametrize("act", [unpickles, starts_a_program, writes_beside, renames_out_of_it])
def test_what_may_not_happen_is_seen(tmp_path, act):
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(AssertionError), watched(inside):
        act(inside)


def test_what_may_happen_passes(tmp_path):
    with bounded(2**28), watched(tmp_path), in_time(5):
        (tmp_path / "a").write_text("x")
        json.loads((tmp_path / "a").read_text().replace("x", "1"))


def test_a_hang_ends():
    with pytest.raises(Hang), in_time(0.2):
        time.sleep(5)


@pytest.mark.skipif(not resident(), reason="the kernel does not say how much memory a process has")
def test_memory_that_was_held_for_a_moment_is_seen():
    with pytest.raises(AssertionError), bounded(2**26):
        torch.ones(2**26)
