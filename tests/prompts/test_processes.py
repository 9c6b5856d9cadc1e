"""Several processes that share each batch learn what one does, ProGrad's projection of the whole batch included."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.training.processes import finish, start, together

from .fit_script import KINDS


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """11 pictures in batches of 4, so that the last one is shared unevenly."""
    finish(start(["-m", "tests.prompts.fit_script", str(tmp_path / "one")]))
    together(lambda attempt: ["-m", "tests.prompts.fit_script", str(tmp_path / "two")])
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    assert {name.split(".")[0] for name in one} == set(KINDS)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)
    counts = [json.loads((tmp_path / f"{name}.json").read_text())["processes"] for name in ("one", "two")]
    assert counts == [1, 2]
