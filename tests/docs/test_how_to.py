"""Every how-to page runs as it stands, in an empty folder, and prints what it shows; how that is compared: walk.py."""

from __future__ import annotations

import pytest
import torch

from .blocks import ROOT
from .walk import differences, walk

PAGES = [
    "combine", "debug", "fold", "hallucination", "heads", "ordinary-questions", "positions", "typographic-attacks",
    "your-model",
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for step, printed in walk(ROOT / "docs/how-to" / f"{page}.md", tmp_path):
        assert not differences(step.shown, printed), (step.line, step.body, *differences(step.shown, printed))
