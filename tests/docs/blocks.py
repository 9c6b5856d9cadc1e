"""The code blocks of a page of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    """Every block of a language, in order."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def named_blocks(page: str) -> dict[str, str]:
    """The blocks whose first line is a comment with a file's name, by that name."""
    found = re.findall(
        r"^```\w+\n(# ([\w.]+\.\w+)\n.*?)^```$", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE
    )
    return {name: body for body, name in found}
