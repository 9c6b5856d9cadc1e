"""docs/precision.md: its code runs, and its table has every method within the tolerances that the tests hold it to."""

from __future__ import annotations

import re
from pathlib import Path

from .precisions import FINEST, PRECISIONS, TOLERANCE
from .recipes import RECIPES
from .subjects import TWICE

PAGE = (Path(__file__).parents[2] / "docs" / "precision.md").read_text()


def test_its_code_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    exec(compile(code, "precision.md", "exec"), {})
    assert "'" in capsys.readouterr().out


def test_its_table_has_every_method_and_no_distance_above_the_tolerance():
    rows = re.findall(r"^\| `(\w+)`(?: \*)? \| (.+) \|$", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == sorted(RECIPES)
    for name, cells in rows:
        *found, effect = cells.split(" | ")
        for precision, cell in zip(PRECISIONS, found, strict=True):
            far, alone = (float(number) for number in re.findall(r"[\d.e+-]+", cell))
            assert max(far, alone) <= 100 * TOLERANCE[precision]
            assert name in TWICE or far <= max(2.2 * alone, 100 * FINEST)  # two digits are written
        assert float(effect) >= 0
