"""The blocks of docs/testing.md are one script that runs; its table has every check."""

from __future__ import annotations

import contextlib
import io
import sys
import types

import pytest

from steer import testing

from .blocks import ROOT, blocks

PAGE = "docs/testing.md"


@pytest.fixture(scope="module")
def ran():
    """The page's code as a module that was run, and what it printed."""
    module = types.ModuleType("testing_page")
    sys.modules[module.__name__] = module
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile("\n".join(blocks(PAGE, "python")), PAGE, "exec", dont_inherit=True), vars(module))
    yield module, said.getvalue()
    del sys.modules[module.__name__]


def test_the_code_runs_and_finds_what_it_says(ran):
    said = ran[1]
    for fact in (
        "Qwen2_5_VLForConditionalGeneration",
        "llava: ",
        "pass fires",
        "pass restores",
        "pass saves",
        "without a cache by",
    ):
        assert fact in said


def test_the_test_on_the_page_is_one(ran, tmp_path):
    page, _ = ran
    with testing.plugged(page.Dimmer):
        page.test_every_promise_holds("clip", tmp_path)


def test_every_check_is_in_the_table():
    text = (ROOT / PAGE).read_text()
    for name in (name for name in testing.__all__ if name.startswith("check_")):
        assert f"| `{name}` |" in text
