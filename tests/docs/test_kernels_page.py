"""docs/kernels.md: its code runs, and its table has every operation."""

from __future__ import annotations

import re

import torch

import steer_kernels
from steer_kernels.fused import FILES

from .blocks import ROOT, blocks


def test_the_code_runs():
    namespace: dict = {}
    for body in blocks("docs/kernels.md", "python"):
        exec(compile(body, "docs/kernels.md", "exec"), namespace)
    torch.testing.assert_close(namespace["y"].norm(dim=-1), namespace["h"].norm(dim=-1))
    assert namespace["student"].grad.abs().sum() > 0


def test_the_table_has_every_operation():
    text = (ROOT / "docs/kernels.md").read_text()
    listed = {
        name for row in re.findall(r"^\| (`.*?`) \|", text, flags=re.MULTILINE) for name in row.strip("`").split("`, `")
    }
    assert listed == set(FILES)
    assert set(FILES) <= set(steer_kernels.__all__)
