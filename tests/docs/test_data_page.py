"""Every block of docs/data.md runs, in order, in one folder."""

from __future__ import annotations

import json
import re
import shlex

import pytest

import steer
from steer.cli import main

from .blocks import ROOT

PAGE = (ROOT / "docs/data.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def run_command(line: str) -> None:
    program, *words = shlex.split(line)
    assert program == "steer"
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code in (0, None), line


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    (tmp_path / "animals" / "images").mkdir(parents=True)
    ran = []
    for language, body in BLOCKS:
        ran.append(language)
        if language == "json":
            (tmp_path / "animals" / "train.jsonl").write_text(body)
            names = {name for line in body.splitlines() for name in re.findall(r"images/\w+\.png", line)}
            for name, (picture, _) in zip(sorted(names), steer.zoo.pictures(), strict=False):
                picture.save(tmp_path / "animals" / name)
        elif language == "python" and "import datasets" in body:
            try:
                import datasets  # noqa: F401
            except ImportError:
                continue
            exec(body, namespace)
            assert [len(one.images) for one in namespace["examples"]] == [1]
        elif language == "python":
            exec(body, namespace)
        elif language == "bash":
            capsys.readouterr()
            for line in body.strip().splitlines():
                run_command(line)
            said = capsys.readouterr().out
            assert all(row in said for row in ("zero-shot", "4-shot in context", "task_vector"))
        else:
            pytest.fail(f"a block of {language or 'no language'} that this test does not run")
    assert ran == ["json", *["python"] * 7, "bash"]
    kinds = {labels["kind"] for _, labels in steer.zoo.pictures("demo")}
    assert {one.answer for one in namespace["train"]} == {one.answer for one in namespace["test"]} == kinds
    assert len(namespace["shots"]) == 4 * len(namespace["base"]) == 4 * -(-len(kinds) // 2)
    assert [view.size for view in namespace["views"]] == [(48, 48)] * 3
    found = steer.data.read("animals", split="train")
    assert [one.answer for one in found] == ["fox", "owl", "two", "one"]
    assert [len(one.images) for one in found] == [1, 1, 1, 3]


def test_the_table_of_keys_is_the_codes():
    from steer.data._columns import PARTS

    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(PARTS)
    for name, about in rows:
        assert all(f"`{other}`" in about for other in PARTS[name] if other != name)
    assert all(
        set(json.loads(line)) <= {n for names in PARTS.values() for n in names} for line in BLOCKS[0][1].splitlines()
    )
