"""Every tutorial runs as it stands, in an empty folder, and prints what it shows; how outputs are compared: walk.py."""

from __future__ import annotations

import pytest
import torch

from .blocks import ROOT
from .walk import differences, steps, walk

PAGES = sorted((ROOT / "docs/tutorials").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for step, printed in walk(page, tmp_path):
        assert not differences(step.shown, printed), (step.line, step.body, *differences(step.shown, printed))


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("right 0.975 of 40", "right 0.983 of 40", True),
        ("right 0.975 of 40", "right 0.800 of 40", False),
        ("right 0.975 of 40", "right 0.975 of 41", False),
        ("0.0004", "0.004", True),  # so small a number is not told from another
        ("yes", "no", False),
        ("a\n\nb", "a\nb  ", True),
        ("a", "a\nb", False),
        ("saved in 1.5 s", "saved in 20.5 s", True),
        ("┃ x ┃ ms / query ┃\n│ 1 │ 2.5 │", "┃ x ┃ ms / query ┃\n│ 1 │ 9.5 │", True),
        ("┃ x ┃ ms / query ┃\n│ 1 │ 2.5 │", "┃ x ┃ ms / query ┃\n│ 2 │ 2.5 │", False),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, same: bool) -> None:
    assert (not differences(shown, printed)) is same


def test_only_blocks_that_are_marked_with_a_reason_are_passed_over() -> None:
    page = "```python\n1\n```\n<!-- not run: a hub id -->\n```bash\n2\n```\n<!-- not run: -->\n```bash\n3\n```\n"
    assert [(step.body, step.run) for step in steps(page)] == [("1\n", True), ("2\n", False), ("3\n", True)]
    with pytest.raises(ValueError, match="json"):
        steps("```json\n{}\n```\n")
    with pytest.raises(ValueError, match="text"):
        steps("```text\nsaid by nobody\n```\n")
