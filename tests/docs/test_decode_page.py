"""The page on one decoded token is what its records give."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def script():
    spec = importlib.util.spec_from_file_location("decode", ROOT / "docs" / "experiments" / "decode.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_records():
    records = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("decode-*.json"))]
    assert records
    assert (RESULTS / "decode.md").read_text() == script().page(records)


def test_a_step_is_timed_under_every_session(monkeypatch, capsys):
    decode = script()
    monkeypatch.setattr("sys.argv", ["decode.py", "--quick"])
    monkeypatch.setattr(decode, "ROUNDS", 2)
    monkeypatch.setattr(decode, "REPEATS", 1)
    decode.main()
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["session"] for row in rows][:2] == ["bare", "K1 shift"]
    assert all(row["eager_ms"] > 0 for row in rows)
