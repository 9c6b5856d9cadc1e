"""The sweep over settings runs, checks what it times, and says what it does not know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "kernels" / "bench" / "sweep.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_every_setting_is_timed_beside_the_one_that_is_used():
    done = sweep("compact", "--quick")
    assert done.returncode == 0, done.stderr
    rows = done.stdout.split("compact ")[1:]
    assert len(rows) == 4
    for row in rows:
        _, used, *others = row.strip().splitlines()
        assert used.endswith("as it is")
        assert len(others) == 4
        assert all("left out" not in other for other in others)


@pytest.mark.parametrize("arguments, says", [(("no_such", "--quick"), "query_shift"), ((), "no GPU")])
def test_what_cannot_be_swept_is_said(arguments, says):
    if "no GPU" in says and torch.cuda.is_available():
        pytest.skip("there is a GPU, and it would be swept")
    done = sweep(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
