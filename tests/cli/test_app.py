"""Errors, exit codes, plugins' commands, and what a pipe sees."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import pytest
import typer

import steer

TINY = ("--model", "tiny-vlm")
MISSING = ("inspect", "no-such-model")
WRONG = {
    "a model that does not exist": (MISSING, 1, ["no-such-model", "hub id"]),
    "a check on it": (("check", "no-such-model"), 1, ["no-such-model"]),
    "no picture": (("generate", "--model", "tiny-vlm", "--prompt", "x", "--image", "no.png"), 1, ["no.png"]),
    "no method": (("generate", "--model", "tiny-vlm", "--prompt", "x", "--method", "no-folder"), 1, ["no-folder"]),
    "no command": (("no-command",), 2, ["no-command", "`steer --help`"]),
    "nearly a command": (("generat",), 2, ["generat", "did you mean 'generate'"]),
    "nearly a command of a group": (("memory", "buld"), 2, ["buld", "did you mean 'build'", "`steer memory --help`"]),
    "no option": (("methods", "--no-option"), 2, ["--no-option", "`steer methods --help`"]),
    "nearly an option": (("generate", "--promt", "x"), 2, ["--promt", "did you mean --prompt"]),
    "an option without its value": (("generate", "--prompt"), 2, ["--prompt"]),
    "the model as it was given before": (("generate", "tiny-vlm", "--prompt", "x"), 2, ["--model"]),
    "no argument": (("inspect",), 2, ["MODEL"]),
    "a method that must be fitted": (("generate", *TINY, "--prompt", "x", "--method", "icv"), 1, ["'icv'", "fit"]),
    "nearly a method": (("generate", *TINY, "--prompt", "x", "--method", "image_focs"), 1, ["'image_focus'"]),
    "a setting and no method": (("generate", *TINY, "--prompt", "x", "--config", "a=1"), 1, ["--config", "--method"]),
    "a memory by no method": (("memory", "build", *TINY, "--data", "zoo:colour", "--out", "o"), 2, ["--method"]),
    "no device": (("check", "tiny-vlm", "--device", "abacus"), 1, ["abacus"]),
    "no dtype": (("generate", *TINY, "--prompt", "x", "--dtype", "bf16"), 1, ["'bf16'", "bfloat16"]),
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
    assert ran.err.startswith("steer: ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("--debug", *MISSING), (MISSING[0], "--debug", MISSING[1]), (*MISSING, "--debug")]
)
def test_debug_shows_the_error_itself(arguments):
    from steer.cli import main

    with pytest.raises(steer.errors.MappingError):
        main(list(arguments))


class Leaves:
    """A plugin whose command ends in a way of its own."""

    ways: ClassVar[dict[str, BaseException]] = {
        "breaks": ZeroDivisionError("two\nlines"),
        "interrupted": KeyboardInterrupt(),
        "fails": typer.Exit(3),
        "refused": steer.SteerError("no"),
        "refuses": typer.BadParameter("not so"),
        "aborts": typer.Abort(),
    }

    @steer.hookimpl
    def steer_add_commands(self, app):
        @app.command("leave")
        def leave(way: str) -> None:
            """Leave."""
            if way in self.ways:
                raise self.ways[way]


@pytest.mark.parametrize(
    "way, code, said",
    [
        ("well", 0, ""),
        ("breaks", 1, "steer: ZeroDivisionError: two lines (--debug shows where)\n"),
        ("refused", 1, "steer: no\n"),
        ("refuses", 2, "steer: invalid value: not so (`steer leave --help` lists what there is)\n"),
        ("fails", 3, ""),
        ("aborts", 1, "steer: stopped\n"),
        ("interrupted", 130, "steer: interrupted\n"),
    ],
)
def test_every_way_out_has_its_exit_code_and_one_line(steer_cli, plugged, way, code, said):
    plugged(Leaves())
    assert steer_cli("leave", way) == (code, "", said)


def test_exit_codes_are_told(steer_cli):
    told = " ".join(steer_cli("--help").out.split())
    assert all(f"{code} " in told.split("Exit codes:")[1] for code in (0, 1, 2, 3, 130))


def test_no_words_at_all_are_answered_with_help(steer_cli):
    for words in ((), ("memory",)):
        ran = steer_cli(*words)
        assert (ran.code, ran.err) == (2, "")
        assert ran.out.rstrip() == steer_cli(*words, "--help").out.rstrip()


def test_json_has_no_numbers_that_json_has_not(capsys):
    from steer.cli._output import print_json

    print_json({"a": [math.nan, (1.5, -math.inf)], "b": True, "c": None})
    assert json.loads(capsys.readouterr().out) == {"a": [None, [1.5, None]], "b": True, "c": None}


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
