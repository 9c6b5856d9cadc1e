"""docs/prompts.md: every python block runs in order in one folder, and its tables have every method and every field."""

from __future__ import annotations

import re

import torch

import steer

from .blocks import ROOT

PAGE = (ROOT / "docs/prompts.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
METHODS = {name: info.cls for name, info in steer.methods().items() if info.cls.__module__.startswith("steer_prompts.")}


def test_every_block_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict = {}
    for body in BLOCKS:
        exec(compile(body, "docs/prompts.md", "exec"), namespace)
    right = sum(said == name for said, (_, name) in zip(namespace["found"].labels, namespace["train"], strict=True))
    assert right > 0.5 * len(namespace["train"]) > 2 * len(namespace["train"]) / len(namespace["names"])
    assert set(namespace["elsewhere"].labels) <= set(namespace["others"])
    steered = namespace["scores"].softmax(-1)
    assert torch.allclose(steered, namespace["found"].probabilities[:1], atol=1e-5)


def test_the_table_has_every_method_with_its_paper() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| .* \| (.*?) \|$", PAGE, flags=re.MULTILINE))
    assert rows.keys() == METHODS.keys()
    for name, cls in METHODS.items():
        assert cls.paper in rows[name], name


def test_every_field_is_in_the_table() -> None:
    fields = steer.methods()["zero_shot"].to_dict()["config"]
    table = PAGE.split("## Fields")[1]
    assert all(f"`{name}`" in table for name in fields)
