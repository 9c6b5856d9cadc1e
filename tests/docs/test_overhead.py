"""The script behind docs/overhead.md runs, and its page can be read out of its numbers."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "docs" / "experiments"


def test_the_overhead_script_runs_on_a_toy(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--quick", "--out", str(tmp_path)])
    importlib.import_module("overhead").main()
    found = json.loads((tmp_path / "overhead.json").read_text())
    toy = found["models"]["toy"]
    assert not toy["failed"]
    assert toy["largest_logit_difference"] <= 1e-5
    assert (tmp_path / "overhead.png").stat().st_size > 0
    page = (tmp_path / "overhead.md").read_text()
    assert page in capsys.readouterr().out
    assert all(f"| {name} |" in page for name in toy["generation"])
