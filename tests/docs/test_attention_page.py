"""docs/results/attention.md is what its records give, and the script behind it runs."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("attention_script", ROOT / "docs" / "experiments" / "attention.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture
def records() -> dict:
    return json.loads((RESULTS / "attention.json").read_text())


def test_the_page_is_made_from_the_records(script, records) -> None:
    page = script.attention_page.write(records)
    assert (RESULTS / "attention.md").read_text() == page
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (RESULTS / link).exists()


def test_every_ratio_on_the_page_is_of_one_round(script, records) -> None:
    """The verdicts follow from the seconds in the records, and slower ones turn them."""
    rows = list(script.attention_page.targets(records))
    assert {row[3] for row in rows if "no GPU" in row[2]} <= {None}
    slow = copy.deepcopy(records)
    for record in slow.values():
        for cases in record["groups"].values():
            for case in cases:
                case["ways"]["ours"]["seconds"] = [1.2 * s for s in case["ways"]["unsteered"]["seconds"]]
                if case["ways"]["ours"].get("bytes"):
                    case["ways"]["ours"]["bytes"] = case["length"] ** 2
    turned = [row for row in script.attention_page.targets(slow) if row[3] is not None]
    times = [row for row in turned if row[0].endswith("x unsteered")]
    assert times
    assert all(row[2].startswith("1.200 [1.200, 1.200]") and row[3] is False for row in times)
    memory = [row for row in turned if row[0].startswith("memory")]
    assert memory
    assert all(row[2] == "16.00" and row[3] is False for row in memory)


def test_the_script_measures_every_way(script, tmp_path, monkeypatch, capsys) -> None:
    """Without flex attention, which takes a compiler and its time; each way that is compared is right."""
    layer = sys.modules["attention_layer"]
    monkeypatch.setattr(layer, "_flex", lambda made, length: layer.Way(raises))
    monkeypatch.setattr(sys.modules["attention_turns"], "BATCH", 1e-4)
    monkeypatch.setattr(script, "QUICK_LENGTHS", (32, 64))
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["attention.py", "--quick", "--json", "--out", str(tmp_path)])
    try:
        script.main()
    finally:
        torch.set_num_threads(threads)
    printed = json.loads(capsys.readouterr().out)
    record = printed["cpu"]
    assert set(record["groups"]) == set(script.GROUPS)
    for cases in record["groups"].values():
        assert [case["length"] for case in cases] == [32, 64]
        for case in cases:
            assert len(case["ways"]["unsteered"]["seconds"]) == len(case["ways"]["ours"]["seconds"]) == 2
            limit = 2e-2 if case["dtype"] == "bfloat16" else 1e-5
            assert all(way["difference"] <= limit for way in case["ways"].values() if "difference" in way)
    prefill = record["groups"]["prefill"][0]
    assert "mask, made in the call" in prefill["ways"]
    assert prefill["left_out"] == {"flex_attention, compiled": "RuntimeError: not here"}
    assert "flex_attention, compiled: `RuntimeError: not here`" in (tmp_path / "attention.md").read_text()


def raises() -> torch.Tensor:
    raise RuntimeError("not here")
