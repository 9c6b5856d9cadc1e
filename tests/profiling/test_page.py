"""docs/profiling.md: every block runs in order in one folder, and its table is what was measured."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from steer.cli import main
from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs/profiling.md").read_text()


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(body, namespace)
            continue
        assert language == "bash"
        for line in body.splitlines():
            program, *words = shlex.split(line)
            assert program == "steer"
            with pytest.raises(SystemExit) as left:
                main(words)
            assert left.value.code in (0, None), line
    # The command wrote over the file of the first block; the last blocks took the page's own.
    assert {path.name for path in tmp_path.iterdir()} == {"heads.safetensors", "heads.html", "heads.png", "heads-run"}


def test_the_table_is_what_was_measured():
    found = json.loads((ROOT / "docs/results/profiling.json").read_text())
    top = found["settings"]["top"]
    rows = []
    for task, row in found["tasks"].items():
        cells = [
            f"{row[name]['spearman']:.2f} | {row[name]['top']} of {top}" for name in ("indirect_effect", "ablation")
        ]
        seconds = row["seconds"]
        rows.append(f"| `{task}` | {' | '.join(cells)} | {seconds['exact']:.1f} | {seconds['first_order']:.1f} |")
    assert re.findall(r"^\| `[\w-]+` \| -?[01]\.\d\d .*$", PAGE, flags=re.MULTILINE) == rows
