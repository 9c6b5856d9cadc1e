"""docs/attention.md: every block runs in order, and its table has every method of the package."""

from __future__ import annotations

import re

import steer

from .blocks import ROOT, blocks

PAGE = "docs/attention.md"
METHODS = {n: info.cls for n, info in steer.methods().items() if info.cls.__module__.startswith("steer_attention.")}


def test_every_block_runs() -> None:
    namespace: dict = {}
    for body in blocks(PAGE, "python"):
        exec(compile(body, PAGE, "exec"), namespace)
    prompt = namespace["inputs"]["input_ids"].shape[1]
    assert 1 <= namespace["written"].shape[1] - prompt <= 4
    assert len(namespace["looking"]) == 4
    inside = namespace["span"].rows[0]
    assert 0 < int(inside.sum()) < 16


def test_the_table_has_every_method_with_its_paper() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (.*?) \|$", (ROOT / PAGE).read_text(), flags=re.MULTILINE))
    assert rows.keys() == METHODS.keys()
    for name, cls in METHODS.items():
        assert cls.paper in rows[name], name
