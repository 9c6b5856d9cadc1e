"""A stranger's suite is found, asked and scored as the built-in ones; one that is none is named and skipped."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

import steer
import steer.suites
from steer.suites import Question, Suite, suites


class Count(Suite):
    """How many words are written."""

    name, paper, summary = "count", "https://example.org", "Counts words."
    statistics: ClassVar = {"words": lambda columns, w: steer.suites.metrics.mean(columns["words"], w)}
    shown = ("words",)

    def load(self, files, images=None, *, limit=None):
        return [Question(word, "g", steer.Example(word), word) for word in files[:limit]]

    def measure(self, questions, answers):
        import numpy as np

        words = np.array([len(answer.text.split()) for answer in answers])
        return {"words": words, "right": words > 0}


class Plugin:
    def __init__(self, *classes):
        self.classes = classes

    @steer.hookimpl
    def steer_register_suites(self, registry):
        for cls in self.classes:
            registry.add(cls)


def test_the_built_in_suites():
    assert list(suites()) == ["chair", "pope"]


def test_a_strangers_suite_is_a_suite(plugged):
    plugged(Plugin(Count))
    assert list(suites()) == ["chair", "count", "pope"]
    found = suites()["count"]
    questions = found.load(["?", "what is it?"])
    answers = found.ask(*steer.zoo.load(), questions)
    (score,) = found.score(questions, answers, resamples=20)
    assert score.metrics["words"].value == sum(len(one.text.split()) for one in answers) / 2


class NoSuite:
    pass


class Half(Suite):
    name, paper, summary, statistics, shown = "half", "", "", {}, ()


class Shows(Count):
    name, shown = "shows", ("letters",)


class Nameless(Suite):
    summary, statistics, shown = "", {}, ()
    load, measure = Count.load, Count.measure


class AnotherPope(Count):
    name = "pope"


@pytest.mark.parametrize(
    "cls, facts",
    [
        (NoSuite, ("NoSuite", "subclass")),
        (Half, ("Half", "load, measure")),
        (Shows, ("letters", "words")),
        (Nameless, ("Nameless", "no class attribute 'name'")),
        (AnotherPope, ("'pope'", "steer-vlm", "throw-away")),
    ],
)
def test_what_is_no_suite_is_named_and_skipped(plugged, cls, facts):
    plugged(Plugin(cls))
    with pytest.warns(RuntimeWarning) as said:
        assert list(suites()) == ["chair", "pope"]
    assert all(fact in str(said[0].message) for fact in facts), str(said[0].message)


def test_the_command_finds_a_plugins_suite(plugged, capsys):
    from steer.cli import main

    plugged(Plugin(Count))
    with pytest.raises(SystemExit):
        main(["eval", "--model", "tiny-vlm", "--suite", "count", "--data", "what is it?", "--json"])
    assert json.loads(capsys.readouterr().out)["suite"] == "count"
