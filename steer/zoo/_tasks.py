"""The tasks of tiny-vlm: rules that read a picture's labels and give the one-word answer.

With a plain question the question says which rule applies. With the bare query "?" only the demonstrations do.
Four families of rules are trained; in three of them some members are held out (see `HELD_OUT`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from steer.zoo._words import ATTRIBUTES, BARE, QUESTIONS, VALUES

Labels = dict[str, str]


@dataclass(frozen=True)
class Rule:
    """One task: `answer` reads the labels.

    Where `test` = (attribute, value) is given, the task has two sides, and examples are drawn from both alike.
    """

    name: str
    about: str
    answer: Callable[[Labels], str]
    test: tuple[str, str] | None = None
    split: str = "trained"
    question: str = BARE


def attribute(name: str, question: str = BARE) -> Rule:
    """Answer with one attribute of the picture."""
    prefix = "plain:" if question != BARE else ""
    return Rule(prefix + name, f"the {name} of the picture", lambda y: y[name], question=question)


def conditional(test: str, value: str, then: str, other: str, name: str = "", split: str = "trained") -> Rule:
    """The picture decides what is asked: attribute `then` where its `test` is `value`, else attribute `other`."""
    return Rule(
        name or f"if-{value}:{then}/{other}",
        f"if the {test} is {value}: the {then}, else the {other}",
        lambda y: y[then] if y[test] == value else y[other],
        (test, value),
        split,
    )


def match(test: str, value: str, name: str = "", split: str = "trained") -> Rule:
    """Answer "yes" where attribute `test` is `value`, else "no"."""
    return Rule(
        name or f"is-{value}",
        f"yes if the {test} is {value}, else no",
        lambda y: "yes" if y[test] == value else "no",
        (test, value),
        split,
    )


def relabel(attr: str, words: list[str], name: str = "", split: str = "trained") -> Rule:
    """Answer with the word that the i-th value of an attribute was given."""
    given = dict(zip(VALUES[attr], words, strict=True))
    about = f"the {attr} in other words: " + ", ".join(f"{k} is {v}" for k, v in given.items())
    return Rule(name or f"relabel:{attr}", about, lambda y: given[y[attr]], None, split)


# What training samples from, besides the attributes themselves
IF_TESTS = [
    *(("kind", kind) for kind in ("animal", "food", "vehicle", "plant")),
    ("size", "big"),
    ("style", "noto"),
]
IF_ASKS = ["colour", "count", "position", "size", "style"]
IF_HELD_OUT = [
    ("kind", "food", "position", "colour"), ("kind", "food", "size", "count"), ("kind", "vehicle", "count", "position"),
    ("kind", "plant", "colour", "size"), ("kind", "animal", "style", "position"), ("size", "big", "count", "colour"),
    ("size", "big", "position", "style"), ("style", "noto", "colour", "count"),
]  # fmt: skip
IF_TRAINED = [
    (t, v, a, b)
    for t, v in IF_TESTS
    for a in IF_ASKS
    for b in IF_ASKS
    if a != b and t not in (a, b) and (t, v, a, b) not in IF_HELD_OUT
]
MATCH_HELD_OUT = [("colour", "blue"), ("count", "three"), ("position", "top"), ("kind", "food")]
MATCH_TRAINED = [
    (a, v) for a in ATTRIBUTES if a != "object" for v in VALUES[a] if (a, v) not in MATCH_HELD_OUT
]  # fmt: skip
RELABEL_TRAINED = ["count", "size", "style", "kind"]  # never the position

# The tasks with a name: evaluation, the demo and later experiments use these
BASE = [attribute(a) for a in ATTRIBUTES]
NAMED_TRAINED = [
    *BASE,
    conditional("kind", "animal", "colour", "count", name="if-animal"),
    match("kind", "animal", name="is-animal"),
    relabel("size", ["dax", "wug"], name="relabel-size"),
]
HELD_OUT = [
    conditional("kind", "food", "position", "colour", name="if-food", split="held-out"),
    conditional("size", "big", "count", "colour", name="if-big", split="held-out"),
    match("colour", "blue", name="is-blue", split="held-out"),
    match("kind", "food", name="is-food", split="held-out"),
    relabel("position", ["fep", "zim", "lorp", "tiv"], name="relabel-position", split="held-out"),
    relabel("position", ["right", "left", "bottom", "top"], name="mirror-position", split="held-out"),
]
# The bare tasks that the targets are about: the seven attributes and one conditional task.
HEADLINE = [*(rule.name for rule in BASE), "if-animal"]
PLAIN = [attribute(a, QUESTIONS[a][0]) for a in ATTRIBUTES]
RULES: dict[str, Rule] = {rule.name: rule for rule in [*NAMED_TRAINED, *HELD_OUT, *PLAIN]}
EXISTS = "plain:exists"  # "is there a ...?": the one plain task whose question changes with the picture
