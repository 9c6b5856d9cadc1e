"""Errors, exit codes, plugins' commands, and what a pipe sees."""

from __future__ import annotations

import subprocess
import sys

import pytest

import steer

MISSING = ("inspect", "no-such-model")
WRONG = {
    "a model that does not exist": (MISSING, 1, ["no-such-model", "hub id"]),
    "a check on it": (("check", "no-such-model"), 1, ["no-such-model"]),
    "no picture": (("generate", "--model", "tiny-vlm", "--prompt", "x", "--image", "no.png"), 1, ["no.png"]),
    "no method": (("generate", "--model", "tiny-vlm", "--prompt", "x", "--method", "no-folder"), 1, ["no-folder"]),
    "no command": (("no-command",), 2, ["no-command"]),
    "no option": (("methods", "--no-option"), 2, ["--no-option"]),
    "no argument": (("inspect",), 2, ["MODEL"]),
    "not a number": (
        ("generate", "--model", "tiny-vlm", "--prompt", "x", "--max-new-tokens", "0"),
        2,
        ["max-new-tokens"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_is_one_line_with_what_was_asked(steer_cli, name):
    arguments, code, facts = WRONG[name]
    ran = steer_cli(*arguments)
    assert ran.code == code
    assert ran.out == ""
    for fact in facts:
        assert fact in ran.err
    assert "Traceback" not in ran.err
    if code == 1:
        assert ran.err.startswith("steer: ")
        assert ran.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--debug", *MISSING), (*MISSING, "--debug")])
def test_debug_shows_the_error_itself(arguments):
    from steer.cli import main

    with pytest.raises(steer.errors.MappingError):
        main(list(arguments))


def test_an_error_that_is_not_ours_is_one_line_too(steer_cli, plugged):
    class Breaks:
        @steer.hookimpl
        def steer_add_commands(self, app):
            @app.command("break")
            def break_() -> None:
                """Break."""
                raise ZeroDivisionError("two\nlines")

    plugged(Breaks())
    ran = steer_cli("break")
    assert ran.code == 1
    assert ran.err == "steer: ZeroDivisionError: two lines (--debug shows where)\n"


def test_a_plugin_adds_a_command(steer_cli, plugged):
    class Adds:
        @steer.hookimpl
        def steer_add_commands(self, app):
            @app.command()
            def greet(name: str) -> None:
                """Say hello."""
                print(f"hello {name}")

    plugged(Adds())
    assert steer_cli("greet", "you") == (0, "hello you\n", "")
    assert "Say hello." in steer_cli("--help").out


def test_a_plugin_cannot_take_a_built_in_command(steer_cli, plugged):
    class Takes:
        @steer.hookimpl
        def steer_add_commands(self, app):
            @app.command()
            def methods() -> None:
                print("mine")

    plugged(Takes(), "greedy")
    with pytest.warns(RuntimeWarning, match=r"greedy.*'methods'"):
        ran = steer_cli("methods", "--json")
    assert ran.code == 0
    assert "mine" not in ran.out


def test_version(steer_cli):
    assert steer_cli("--version") == (0, f"{steer.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["inspect", "tiny-vlm"], ["methods"], ["check", "tiny-vlm"]])
def test_a_pipe_gets_no_progress_bar_and_no_colour(arguments):
    command = [sys.executable, "-c", "from steer.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.strip()
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
