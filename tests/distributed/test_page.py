"""docs/distributed.md: its code runs, accelerate reads its files, and its methods are those that are fitted so."""

from __future__ import annotations

import json
import re

import pytest
from accelerate.commands.config.config_args import load_config_from_file

import steer
from steer.registry import method_class
from steer.training import Learned
from tests.docs.blocks import ROOT, blocks

PAGE = (ROOT / "docs/distributed.md").read_text()
CONFIGS = sorted((ROOT / "docs/configs").glob("*.yaml"))


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/distributed.md", "python")
    exec(code, {})
    assert steer.load("live").name == "live"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_reads_the_files(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    assert f"`{path.name}`" in PAGE
    if config.distributed_type == "DEEPSPEED":
        named = ROOT / config.deepspeed_config["deepspeed_config_file"]
        assert json.loads(named.read_text())["zero_optimization"]["stage"] == 3


def test_every_method_that_shares_its_fit_is_named():
    listed = re.search(r"share their work: (.*?)\. The others", PAGE, re.DOTALL).group(1)
    learned = {name for name in steer.methods() if issubclass(method_class(name), Learned)}
    named = set(re.findall(r"`(\w+)`", listed))
    assert learned <= named
    assert all(name in learned or method_class(name).reads == "labelled" for name in named)
