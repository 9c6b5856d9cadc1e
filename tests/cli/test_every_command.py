"""Every command: its help, and one real call with its streams in pipes, whose standard output is JSON alone."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import steer

from .commands import COMMANDS, TOP, options

TINY = ("--model", "tiny-vlm")
ROOT = Path(__file__).parents[2]


def calls(folder: Path) -> dict[str, list[str]]:
    """One line for each command, in an order in which each finds what it needs; `folder` holds the rest."""
    saved, memory, picture = folder / "method", folder / "memory", folder / "picture.png"
    few = ("--data", "zoo:colour", "--limit", 6)
    asked = ("--prompt", "?", "--image", picture, "--max-new-tokens", 2)
    found = {
        "methods": (),
        "inspect": ("tiny-vlm",),
        "check": ("tiny-vlm",),
        "demo": ("--task", "colour", "--limit", 2, "--shots", 4, "--method", "icv", "--png", folder / "demo.png"),
        "fit": ("head_shift", *TINY, *few, "--set", "max_steps=1", "--out", saved),
        "generate": (*TINY, *asked, "--method", saved),
        "look": (*TINY, *asked, "--heads", "3.1", "--method", "image_focus", "--config", "beta=2"),
        "eval": (*TINY, *few, "--method", saved),
        "predict": ("--model", "tiny-clip", "--method", folder / "classes", picture),
        "profile": (*TINY, *few, "--samples", 2, "--shots", 2, "--gradient", "--out", folder / "heads.safetensors"),
        "memory build": (*TINY, *few, "--method", "knorm", "--config", "keep=0.5", "--no-certificate", "--out", memory),
        "memory show": (memory,),
        "memory ask": (memory, *TINY, *asked),
        "fold": (*TINY, "--method", saved, "--out", folder / "folded"),
        "bench": (
            "--quick",
            "--device",
            "cpu",
            "--kernels",
            "js_select",
            "--rounds",
            1,
            "--out",
            folder / "bench.json",
        ),
        "new-plugin": ("calm_colours", "--out", folder / "plugin"),
    }
    return {name: [*name.split(), *map(str, words), "--json"] for name, words in found.items()}


# What a call says on standard output, by a fact that only a run can know.
FACTS = {
    "methods": lambda data: {"icv", "coop", "emloc"} <= {one["name"] for one in data},
    "inspect": lambda data: data["towers"]["text"]["width"] == 192,
    "check": lambda data: data["passed"] is True,
    "demo": lambda data: [row["name"] for row in data["rows"]][-1] == "icv",
    "fit": lambda data: data["numbers"] == 4 * 6 * 32,
    "generate": lambda data: len(data["report"]["interventions"]) == 4,
    "look": lambda data: data["heads"] == [[3, 1]],
    "eval": lambda data: [row["name"] for row in data["rows"]][:1] == ["zero-shot"],
    "predict": lambda data: data["predictions"][0]["class"] in ("pizza", "banana"),
    "profile": lambda data: (data["samples"], len(data["top"]["indirect_effect"])) == (2, 20),
    "memory build": lambda data: data["method"] == "knorm",
    "memory show": lambda data: data["config"]["keep"] == 0.5,
    "memory ask": lambda data: data["prompt"] == "?" and data["answer"],
    "fold": lambda data: data["difference"] < 1e-5,
    "bench": lambda data: {row["kernel"] for row in data["rows"]} == {"js_select"},
    "new-plugin": lambda data: data["class"] == "CalmColours",
}


@pytest.fixture(scope="module")
def piped(tmp_path_factory) -> dict[str, tuple[int, str, str]]:
    """Exit code, standard output and standard error of every call; all in one process, whose streams are pipes."""
    folder = tmp_path_factory.mktemp("calls")
    steer.zoo.examples("plain:colour", n=1)[0].images[0].save(folder / "picture.png")
    steer.create("zero_shot", classes=["pizza", "banana"]).save_pretrained(folder / "classes")
    lines = [(name, words) for name, words in calls(folder).items() if name in COMMANDS]
    (folder / "lines.json").write_text(json.dumps(lines))
    command = [sys.executable, "-m", "tests.cli.drive", str(folder / "lines.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    out, err = _parts(done.stdout), _parts(done.stderr)
    return {name: (code, out[name][1], err[name][1]) for name, (code, _) in out.items()}


def _parts(text: str) -> dict[str, tuple[int, str]]:
    """By the marks of `drive`: exit code and what was printed in between."""
    found = re.findall(r"^=== ([\w -]+) begins\n(.*?)^=== \1 (\d+)\n", text, flags=re.MULTILINE | re.DOTALL)
    return {name: (int(code), said) for name, said, code in found}


@pytest.mark.parametrize("name", COMMANDS)
def test_one_real_call_prints_json_and_no_bar_into_pipes(piped, name):
    code, out, err = piped[name]
    assert code == 0, err
    assert FACTS[name](json.loads(out, parse_constant=pytest.fail))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2500-\u259f]|%\|", err), err


@pytest.mark.parametrize("name", ["", "memory", *COMMANDS])
def test_help_names_every_option_and_fits_into_80_columns(steer_cli, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    ran = steer_cli(*name.split(), "--help")
    assert ran.code == 0, ran.err
    assert steer_cli(*name.split(), "-h").out == ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    shown = options(COMMANDS[name]) if name in COMMANDS else []
    for option in shown:
        # Alone in its column, and not cut.
        assert re.search(rf"{option.opts[0]}\s", ran.out), option.opts
        for word in (option.help or "").split():
            assert word in ran.out, f"{word!r} is broken in the help of {option.opts[0]}"


def test_commands_are_in_panels_with_one_line_each(steer_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = steer_cli("--help").out.splitlines()
    panels = [line.split()[1] for line in lines if line.startswith("╭")]
    assert panels[:5] == ["Options", "Look", "Learn", "Use", "Measure"]
    inside = lines[next(i for i, line in enumerate(lines) if line.startswith("╭─ Look")) :]
    named = [line.split()[1] for line in inside if line.startswith("│")]
    assert sorted(named) == sorted(TOP.commands)


def test_a_terminal_gets_a_bar_that_is_gone_afterwards():
    """Of `steer check`, on a terminal of its own for standard error; standard output is a pipe."""
    reader, terminal = pty.openpty()
    command = [sys.executable, "-m", "steer", "check", "tiny-vlm", "--json"]
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")} | {"TERM": "xterm"}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True, env=env, cwd=ROOT)
    os.close(terminal)
    said = b""
    while True:
        try:
            more = os.read(reader, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not more:
            break
        said += more
    out = running.communicate()[0]
    os.close(reader)
    assert running.returncode == 0
    assert json.loads(out)["passed"]
    assert b"checking" in said
    # Erase line, and the cursor is back.
    assert b"\x1b[2K" in said
    assert said.rfind(b"\x1b[?25h") > said.rfind(b"checking")
