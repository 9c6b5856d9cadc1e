"""docs/how-it-works.md: its blocks run in order and print what stands below them; its picture names the real sites."""

from __future__ import annotations

import inspect
import re

import steer

from .blocks import ROOT

PAGE = (ROOT / "docs/how-it-works.md").read_text()
WITH_OUTPUT = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_every_block_prints_what_the_page_shows(capsys):
    namespace: dict = {}
    found = WITH_OUTPUT.findall(PAGE)
    assert len(found) == PAGE.count("```python") == 3
    for code, shown in found:
        capsys.readouterr()
        exec(compile(code, "how-it-works.md", "exec"), namespace)
        printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
        assert printed.strip() == shown.strip()


def test_every_site_of_a_layer_is_in_the_picture_and_no_other():
    drawn = set(re.findall(r'class="c">(\w+)<', (ROOT / "docs/how-it-works.svg").read_text()))
    # These stand before the layers, after them, or around the model.
    outside = {"embeddings", "token_embeddings", "features", "call", "logits"}
    names = {name for name, thing in vars(steer.sites).items() if inspect.isfunction(thing) and name[0] != "_"}
    assert drawn == {name for name in names if thing_is_a_site(name)} - outside


def thing_is_a_site(name: str) -> bool:
    return inspect.signature(getattr(steer.sites, name)).return_annotation == "Site"
