"""The same name means the same in every command: of one kind, in the same words, and one of those that are known."""

from __future__ import annotations

import pytest

from .commands import COMMANDS, kind, options

# Every option of every built-in command. A new name is added here, after a look at whether an old one says it already.
KNOWN = {
    "bool": "--allow-fewer --base --base-new --every-head --force --gradient --json --keep-checkpoints "
    "--no-certificate --no-compile --quick --skip-unreadable",
    "int": "--batch-size --chunk --limit --max-new-tokens --probes --rounds --samples --seed --shots --threads "
    "--tokens --top",
    "float": "--temperature --time-limit --top-p",
    "path": "--answers --checkpoints --csv --head-map --html --image --images --out --png --sentences",
    "text": "--attention --augment --classes --config --corrupt --data --dev --device --dtype --heads --kernels "
    "--measure --method --model --only --pool --prompt --query --read --scale --set --suite --task --template "
    "--wording",
}
KIND = {name: kind for kind, names in KNOWN.items() for name in names.split()}
# Labelled pictures are asked about by a prompt for each class, `a photo of a {}.`, which is no way to write an example.
OTHER_WORDS = {("--template", "eval")}
# Commands that run a model, and those of them and of others that draw something.
RUN = ("check", "demo", "fit", "generate", "predict", "eval", "profile", "look", "fold", "memory build", "memory ask")
DRAW = ("check", "demo", "fit", "generate", "eval", "profile", "memory build", "bench")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_a_known_one_of_its_kind(command):
    found = {name: kind(option) for option in options(COMMANDS[command]) for name in option.opts}
    assert found == {name: KIND.get(name) for name in found}


def test_no_known_option_is_gone():
    assert {name for command in COMMANDS.values() for option in options(command) for name in option.opts} == set(KIND)


@pytest.mark.parametrize("name", KIND)
def test_an_option_begins_its_help_alike_everywhere(name):
    found = {
        " ".join(option.help.split()[:2])
        for command, value in COMMANDS.items()
        for option in options(value)
        if name in option.opts and (name, command) not in OTHER_WORDS
    }
    assert len(found) == 1, found


def names_of(command: str) -> set[str]:
    return {name for option in options(COMMANDS[command]) for name in option.opts}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_every_command_has(command):
    names = names_of(command)
    assert "--json" in names
    assert ({"--device", "--dtype"} <= names) == (command in RUN or command == "bench")
    assert ("--seed" in names) == (command in DRAW)
    # `inspect` and `check` are about nothing but a model, the demo about a model of its own.
    alone = command in ("inspect", "check")
    assert ("--model" in names) == (command in RUN and command not in ("check", "demo"))
    assert [one.name for one in COMMANDS[command].params if one.param_type_name == "argument"] == {
        "fit": ["method"], "predict": ["pictures"], "memory show": ["folder"], "memory ask": ["folder"],
        "new-plugin": ["name"],
    }.get(command, ["model"] if alone else [])  # fmt: skip
