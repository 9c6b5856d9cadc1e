"""The code of docs/suites.md runs, and the page has every metric."""

from __future__ import annotations

import pytest

from steer.suites import chair, pope, suites
from tests.docs.blocks import ROOT, blocks

PAGE = (ROOT / "docs/suites.md").read_text()


def test_the_code_runs_and_its_suite_is_one(plugged, capsys):
    names: dict = {}
    for block in blocks("docs/suites.md", "python"):
        exec(block, names)
    assert "Estimate(" in capsys.readouterr().out
    plugged(names["Plugin"]())
    assert "words" in suites()


@pytest.mark.parametrize("name", [*pope.statistics, *chair.statistics])
def test_every_metric_is_explained(name):
    assert f"`{name}`" in PAGE
