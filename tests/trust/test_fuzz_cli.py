"""Whatever stands on the command line: a result, or exit code 1 or 2 and one line; soon, and in its folder."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import given, seed
from hypothesis import strategies as st

import steer
from steer.cli import build_app, main

from .guard import bounded, in_time, watched
from .mutations import JUNK
from .test_fuzz_files import EXAMPLES, SEED, fuzzed

SECONDS, BYTES = 60.0, 1024 * 2**20
# No zero: the system ends a word there. Half a character is what it makes of bytes that are no UTF-8.
WORDS = [word for word in JUNK if isinstance(word, str) and len(word) < 400 and not {"\0", "\ud800"} & set(word)]
WORDS += [
    "\udcff", "-", "--", "-x", "--no-such", "=", "a=b", "a=", "=b", "rank=[[", "layers={}", "a.b=c", "layers=1e999",
    "seed=99999999999999999999", "zoo:", "zoo:colour", "zoo:nothing", "0.0", "1.2.3", ",", "a,b", "1,,2", "[", "'",
]  # fmt: skip
NUMBERS = ["0", "1", "2", "3", "-1", "4.5", "1e9", "nan", "inf", "99999999999999999999", "0x10", "", "٣", " 1", "1_0"]
# What says how much is done: enough to go through, little enough to wait for.
WORK = ("max_new_tokens", "rounds", "threads", "samples", "queries", "shots", "tokens")
FILES = [
    "data", "data/data.jsonl", "picture.png", "broken.png", "broken.json", "list.json", "lines.jsonl", "names.txt",
    "config.json", "method", "method/steer_method.json", "method/steer_method.safetensors", "empty", "nothing",
]  # fmt: skip
LIKELY = {
    "model": ["tiny-vlm"] * 5 + ["config.json", "empty", "no/such", "method"],
    "data": ["zoo:colour", "data", "lines.jsonl", "zoo:food"],
    "pool": ["zoo:colour", "data"],
    "out": ["out", "empty/out", "no/such/out", "picture.png", "."],
    "method": ["image_focus", "icv", "streaming_llm", "emloc", "coop", "method", "vcd"],
    "image": ["picture.png"],
    "prompt": ["what colour is this?", "question: what colour?"],
    "device": ["cpu", "meta", "auto", "cuda:9"],
    "dtype": ["float32", "bfloat16"],
}
# Given last wherever the command has it, so that what turns out valid is over soon.
CHEAP = {
    "demo": ["--queries", "1", "--shots", "4"],
    "bench": ["--only", "no such row"],
    "fit": ["--limit", "2", "--set", "max_steps=1"],
}
HEAVY = ("check",)


def leaves(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*before, name))
        else:
            yield (*before, name), command


COMMANDS = dict(leaves(typer.main.get_command(build_app())))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Some files that a command may be given."""
    made = tmp_path_factory.mktemp("given")
    steer.data.write(made / "data", steer.zoo.examples("colour", "demo", n=4))
    steer.zoo.pictures("test")[0][0].save(made / "picture.png")
    (made / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (made / "broken.json").write_text('{"a": [')
    (made / "list.json").write_text(json.dumps([1, {"a": None}]))
    (made / "lines.jsonl").write_text('{"question": "a", "answer": 1}\n[]\n')
    (made / "names.txt").write_text("cat\n\ncat\n")
    (made / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    steer.create("image_focus").save_pretrained(made / "method")
    (made / "empty").mkdir()
    return made


@cache
def zoo_model() -> Any:
    import matplotlib.font_manager  # noqa: F401 - it lists the machine's fonts once, by programs of its own

    return steer.zoo.load("tiny-vlm")


@pytest.fixture
def one_model(monkeypatch) -> None:
    """The model is loaded once and not a hundred times; anything else is looked for as ever."""
    load, known = steer.zoo.load, zoo_model()
    monkeypatch.setattr(steer.zoo, "load", lambda name="tiny-vlm": known if name == "tiny-vlm" else load(name))


@st.composite
def command_lines(draw: Any, name: tuple[str, ...]) -> list[str]:
    """A command with its required parameters and some others, each with a value that may be right and may not."""
    command = COMMANDS[name]
    words: list[str] = []
    for parameter in command.params:
        if parameter.name == "help" or not (parameter.required or draw(st.integers(0, 3)) == 0):
            continue
        if parameter.param_type_name == "argument":
            words += [draw(value(parameter)) for _ in range(draw(st.integers(0, 2)))]
            continue
        option = draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts]))
        words += [option] if parameter.is_flag else [option, draw(value(parameter))]
    if draw(st.integers(0, 5)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from(WORDS)))
    cheap = CHEAP.get(name[-1], [])
    return [*name, *words, *cheap]


def value(parameter: Any) -> st.SearchStrategy[str]:
    """What may stand for a parameter, by its name and its kind: right, right elsewhere, or junk."""
    junk = st.sampled_from(WORDS) | st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8
    )
    name, kind = parameter.name, parameter.type_descriptor.annotation
    if name in WORK:
        return st.sampled_from(["1", "2", "1", "2", "0", "-1", "nan", "", "1e9", "x"])
    if kind in (int, float):
        return st.sampled_from(["0", "1", "2", "3"] * 4 + NUMBERS) | junk
    likely = st.sampled_from(LIKELY.get(name, FILES))
    return st.sampled_from([0, 0, 0, 1, 2]).flatmap([likely, st.sampled_from(FILES), junk].__getitem__)


@pytest.mark.parametrize("examples", [EXAMPLES // 8, pytest.param(10 * EXAMPLES, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name in COMMANDS if name[-1] not in HEAVY], ids=" ".join)
def test_any_words_end_in_a_result_or_one_line(folder, tmp_path, one_model, monkeypatch, capfd, name, examples):
    monkeypatch.chdir(shutil.copytree(folder, tmp_path / "work"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    @fuzzed(examples)
    @given(words=command_lines(name))
    def run(words: list[str]) -> None:
        result_or_one_line(words, tmp_path, capfd)

    (run if SEED is None else seed(int(SEED))(run))()


def result_or_one_line(words: list[str], folder: Path, capfd: Any) -> None:
    """Run it, and look at what it leaves behind."""
    capfd.readouterr()
    with warnings.catch_warnings(), bounded(BYTES), watched(folder, ("ctypes.dlopen",)), in_time(SECONDS):
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as left:
            main(words)
    err = capfd.readouterr().err
    ours = [line for line in err.splitlines() if line.startswith("steer: ")]
    assert left.value.code in (0, 1, 2, 3), words
    assert "Traceback" not in err, words
    assert "--debug shows where" not in err, (words, err)
    assert left.value.code in (0, 3) or ours or "Usage" in err, words


@pytest.mark.parametrize("words", [[], ["--no-such"], ["no-such"], [""], ["\udcff"], ["memory"], ["-h", "-h"], ["--"]])
def test_words_that_name_no_command(tmp_path, capfd, words):
    with watched(tmp_path, ("ctypes.dlopen",)), pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code in (0, 2)
    assert "Traceback" not in capfd.readouterr().err


def test_the_words_are_those_of_the_system():
    for word in WORDS:
        assert b"\0" not in os.fsencode(word)
