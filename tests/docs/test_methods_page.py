"""docs/methods.md is what its script makes of plugins, results and advice, and leaves no method out."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

import steer

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(DOCS / "experiments"))
    monkeypatch.delitem(sys.modules, "methods", raising=False)
    return importlib.import_module("methods")


def test_the_page_is_as_its_script_makes_it(methods) -> None:
    assert (DOCS / "methods.md").read_text(encoding="utf-8") == methods.page()


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    named = re.findall(r"^\| `(\w+)`", (DOCS / "methods.md").read_text(encoding="utf-8"), re.MULTILINE)
    built_in = {name for name, info in steer.methods().items() if info.cls.__module__.startswith("steer_")}
    assert sorted(named) == sorted(built_in)


@pytest.mark.parametrize("change", ("a method without advice", "advice without a method"))
def test_advice_and_methods_must_agree(methods, tmp_path, monkeypatch, change: str) -> None:
    entries = json.loads(methods.WHEN.read_text(encoding="utf-8"))
    if change == "advice without a method":
        entries["liev"] = entries["live"]
    else:
        del entries["live"]
    (tmp_path / "methods.json").write_text(json.dumps(entries))
    monkeypatch.setattr(methods, "WHEN", tmp_path / "methods.json")
    with pytest.raises(SystemExit, match="liev|live"):
        methods.page()


def test_costs_are_read_from_the_results(methods) -> None:
    """A number of each page, looked up in it by hand."""
    fits, queries = methods.measured()
    assert fits["coop"] == ["C 1.0 s"]
    assert fits["live"] == [
        "A 4.8 s",
        "B 22.5 s",
    ]
    assert queries["vcd"] == ["S 1.92 x"]
