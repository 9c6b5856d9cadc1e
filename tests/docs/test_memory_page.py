"""docs/memory.md: every block runs in order in one folder, and its table has every method of the package."""

from __future__ import annotations

import re
import shlex

import pytest

import steer
from steer.cli import main

from .blocks import ROOT

PAGE = (ROOT / "docs/memory.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
METHODS = {name: info.cls for name, info in steer.methods().items() if info.cls.__module__.startswith("steer_memory.")}


def test_every_block_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for language, body in BLOCKS:
        if language == "python":
            exec(compile(body, "docs/memory.md", "exec"), namespace)
            continue
        for line in body.strip().splitlines():
            with pytest.raises(SystemExit) as left:
                main(shlex.split(line)[1:])
            assert left.value.code in (0, None), (line, capsys.readouterr())
    assert namespace["held_out"]["agreement"] > 0.9
    assert namespace["certificate"]["nbytes"] < 0.5 * namespace["certificate"]["nbytes_whole"]
    right = sum(said == one.answer for said, one in zip(namespace["answers"], namespace["queries"], strict=True))
    assert right >= 22


def test_the_table_has_every_method_with_its_paper() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*?) ?\|$", PAGE, flags=re.MULTILINE))
    assert rows.keys() == METHODS.keys()
    for name, cls in METHODS.items():
        assert cls.paper in rows[name] or (not rows[name] and name == "random"), name
