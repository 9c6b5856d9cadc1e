"""docs/look.md: its code runs, its picture is the one it makes, and its numbers are those that it finds."""

from __future__ import annotations

import re
import shlex

import pytest
from PIL import Image

from tests.docs.blocks import ROOT, blocks

PAGE = (ROOT / "docs/look.md").read_text()


def test_the_blocks_run_and_the_numbers_hold(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks("docs/look.md", "python"):
        exec(block, names)
    found = names["found"]
    shares = [100 * float(side.shares[:, 0].mean()) for side in (found.before, found.after)]
    told = re.search(r"from\s+([\d.]+) % to ([\d.]+) % \(mean of", PAGE)
    assert told is not None
    assert shares == pytest.approx([float(x) for x in told.groups()], abs=0.06)
    told = re.search(r'"yes" goes from ([\d.]+) % to ([\d.]+) %', PAGE)
    assert told is not None
    (token,) = [one for one in found.tokens if one.text.strip() == "yes"]
    assert [100 * token.before, 100 * token.after] == pytest.approx([float(x) for x in told.groups()], abs=0.06)
    assert names["acts"]["attention", 2].shape[:2] == (1, 6)
    made, shipped = Image.open(tmp_path / "look.png"), Image.open(ROOT / "docs/look.png")
    assert abs(made.width / made.height - shipped.width / shipped.height) < 0.2


def test_the_command_is_one_that_exists(steer_cli, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    from steer import zoo

    zoo.examples("plain:exists", n=1)[0].images[0].save("picture.png")
    (line,) = [line for line in PAGE.splitlines() if line.startswith("steer look ")]
    ran = steer_cli(*shlex.split(line)[1:])
    assert ran.code == 0, ran.err
    assert (tmp_path / "look.html").exists()
