"""`steer bench` is `python -m steer_kernels.bench`: the same options, the same table."""

from __future__ import annotations

import json

import pytest
import typer.main
from PIL import Image

import steer_kernels
from steer.cli import build_app
from steer_kernels.bench.__main__ import parser

QUICK = ("bench", "--quick", "--device", "cpu", "--kernels", "js_select")


def test_it_prints_a_table_and_writes_files(steer_cli, tmp_path):
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"b.{name}" for name in ("json", "csv", "png")}
    ran = steer_cli(
        *QUICK, "--out", files["json"], "--csv", files["csv"], "--png", files["png"], "--rounds", 2, "--no-compile"
    )
    assert ran.code == 0
    assert "js_select" in ran.out
    record = json.loads(files["json"].read_text())
    assert {row["kernel"] for row in record["rows"]} == {"js_select"}
    assert {row["rounds"] for row in record["rows"]} == {2}
    assert len(files["csv"].read_text().splitlines()) == 1 + len(record["rows"])
    with Image.open(files["png"]) as drawn:
        assert drawn.format == "PNG"
        assert len(drawn.convert("L").getcolors()) > 2  # something is drawn


def test_a_wrong_kernel_is_exit_code_3(steer_cli, monkeypatch):
    monkeypatch.setattr(steer_kernels, "js_select", lambda scores, *args, **kwargs: scores > 2)
    ran = steer_cli(*QUICK)
    assert ran.code == 3
    assert "js_select and the plain formula differ" in ran.out


def test_an_unknown_kernel_is_one_line_with_the_nearest_name(steer_cli):
    ran = steer_cli("bench", "--kernels", "jds")
    assert ran.code == 1
    assert "did you mean jsd?" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_both_commands_have_the_same_options():
    command = typer.main.get_command(build_app()).commands["bench"]
    ours = {option for given in command.params for option in (*given.opts, *given.secondary_opts)}
    theirs = {option for action in parser()._actions for option in action.option_strings}
    assert ours == theirs - {"-h", "--help"}
