"""`steer new-plugin`: what it makes, and what it refuses."""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from steer.cli import new_plugin
from steer.errors import SteerError

ROOT = Path(__file__).parents[2]
REFUSED = {
    "Dim-Mer": ["'Dim-Mer'", "lower case", "'dim_mer'"],
    "dim__mer": ["underscores", "'dim_mer'"],
    "2dim": ["a letter", "'dim'"],
    "": ["''", "a letter"],
    "x" * 31: ["at most 30", f"'{'x' * 30}'"],
    "none": ["None", "Python"],
    "live": ["method 'live'", "steer-vlm"],
    "kernels": ["package steer_kernels"],
    "vlm": ["distribution steer-vlm"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_cannot_be_is_refused_with_the_rule(steer_cli, tmp_path, name):
    ran = steer_cli("new-plugin", "--out", tmp_path / "made", "--", name)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    for fact in REFUSED[name]:
        assert fact in ran.err
    assert not (tmp_path / "made").exists()


def test_a_folder_that_holds_something_is_left_alone(steer_cli, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    ran = steer_cli("new-plugin", "dimmer", "--out", tmp_path)
    assert ran.code == 1
    assert str(tmp_path) in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    ran = steer_cli("new-plugin", "dimmer", "--out", tmp_path / "mine.txt")
    assert (ran.code, "is a file" in ran.err) == (1, True)


def test_what_the_system_refuses_is_one_line_and_no_bug(steer_cli):
    ran = steer_cli("new-plugin", "dimmer", "--out", "x" * 300)
    assert ran.code == 1
    assert ran.err.startswith("steer: xxx")
    assert "File name too long" in ran.err
    assert "--debug" not in ran.err
    assert ran.err.count("\n") == 1


def test_it_is_made_where_one_is_and_says_what_comes_next(steer_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = steer_cli("new-plugin", "red_dimmer")
    assert (ran.code, ran.err) == (0, "")
    assert [line.strip() for line in ran.out.splitlines()[1:]] == [
        "cd steer-red-dimmer",
        'python -m pip install -e ".[test]"',
        "python -m pytest",
    ]
    made = tmp_path / "steer-red-dimmer"
    assert {path.name for path in made.iterdir()} >= {"pyproject.toml", "README.md", ".gitignore", ".github", "tests"}
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["entry-points"]) == (
        "steer-red-dimmer",
        {"steer": {"red_dimmer": "steer_red_dimmer"}},
    )
    assert "class RedDimmer(" in (made / "steer_red_dimmer/method.py").read_text()
    for path in made.rglob("*"):
        assert "plugin" not in path.name
        if path.is_file():
            text = path.read_text()
            assert not [word for word in ("my_plugin", "my-plugin", "MyPlugin") if word in text], path


@pytest.mark.parametrize("name", ["x", "a_name_of_thirty_letters_in_al"])
def test_what_it_makes_is_clean_whatever_the_length_of_the_name(steer_cli, tmp_path, name):
    tmp_path.joinpath("made").mkdir()
    ran = steer_cli("new-plugin", name, "--out", tmp_path / "made", "--json")
    found = json.loads(ran.out)
    assert (found["method"], found["package"]) == (name, f"steer_{name}")
    assert sorted(found["files"]) == sorted(
        path.relative_to(tmp_path / "made").as_posix() for path in (tmp_path / "made").rglob("*") if path.is_file()
    )
    for path in (tmp_path / "made").rglob("*.py"):
        ast.parse(path.read_text())
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    for arguments in (("check",), ("format", "--check")):
        ruff = [sys.executable, "-m", "ruff", *arguments, "--no-cache", str(tmp_path / "made")]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_method_fits_on_a_page():
    method = new_plugin.template() / "steer_my_plugin" / "method.py"
    assert len(method.read_text().splitlines()) <= 40


def test_the_template_is_found_in_a_wheel_first_and_what_tests_leave_there_is_not_copied(tmp_path, monkeypatch):
    package = tmp_path / "steer"
    shutil.copytree(ROOT / "docs/plugin-template", package / "_plugin_template")
    (package / "_plugin_template/tests/__pycache__").mkdir()
    (package / "_plugin_template/tests/__pycache__/x.pyc").write_bytes(b"\xff")
    monkeypatch.setattr(new_plugin, "__file__", str(package / "cli" / "new_plugin.py"))
    assert new_plugin.template() == package / "_plugin_template"
    assert not any("pycache" in path for path in new_plugin.filled(new_plugin.Names("dimmer")))
    shutil.rmtree(package / "_plugin_template")
    with pytest.raises(SteerError, match=f"template is missing.*{package / '_plugin_template'}"):
        new_plugin.template()
