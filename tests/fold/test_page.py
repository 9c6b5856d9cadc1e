"""docs/serving.md, where that is cheap to check: its example runs, and a few rows of its table are still so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "serving.md").read_text()
SAMPLED = ("llama", "qwen2", "qwen3", "gpt2", "gemma3_text", "mixtral", "llava")


@pytest.fixture(scope="module")
def foldable() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "experiments"))
        import foldable

        yield foldable


def test_the_example_writes_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    exec(compile(block.group(1), "serving.md", "exec"), {})
    model = transformers.AutoModelForImageTextToText.from_pretrained("folded")
    assert model.config.text_config.mlp_bias


@pytest.mark.skipif(
    f"transformers {transformers.__version__}," not in PAGE, reason="the page was made with another transformers"
)
@pytest.mark.parametrize("kind", SAMPLED)
def test_the_row_says_what_folds(kind, foldable):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines()]
    written = next(line[1:] for line in lines if len(line) == 5 and kind in line[0].split(", "))
    config, cls = next((config, cls) for name, config, cls in foldable.classes() if name == kind)
    assert tuple(written) == foldable.row(config, cls)
