"""Make batches of prompts: which rule a sequence is about, which pictures it shows, its tokens and its targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from model import TOKENS_PER_IMAGE

from steer.zoo._tasks import (
    BASE,
    IF_TRAINED,
    MATCH_TRAINED,
    RELABEL_TRAINED,
    RULES,
    Rule,
    conditional,
    match,
    relabel,
)
from steer.zoo._words import ATTRIBUTES, NONSENSE, QUESTIONS, VALUES, YES_RATE, vocabulary


@dataclass(frozen=True)
class Phase:
    """What one run of stage 2 trains on."""

    seed: int
    steps: int
    rate: float  # peak learning rate
    mix: dict[str, float]  # what a sequence is about, and how often
    # (the share of the steps from which it holds, pictures in a sequence: the next number at each step)
    lengths: tuple[tuple[float, tuple[int, ...]], ...]
    nonsense: float  # share of the relabelled sequences that use words without a meaning
    exists: int  # how often "is there a ...?" stands among the plain questions, where each attribute stands once


PHASES = {
    # short sequences first, then up to 17 pictures: 16 demonstrations and the query
    "first": Phase(
        2,
        5000,
        1.5e-3,
        {"attribute": 0.28, "conditional": 0.28, "match": 0.12, "relabel": 0.15, "plain": 0.17},
        ((0.0, (5,)), (0.2, (5, 9, 9, 17)), (0.5, (9, 17))),
        0.7,
        1,
    ),
    # from the first phase's best checkpoint: more of what it found hard, new labels and "is there a ...?"
    "second": Phase(
        3,
        3000,
        1e-3,
        {"attribute": 0.18, "conditional": 0.22, "match": 0.10, "relabel": 0.28, "plain": 0.22},
        ((0.0, (9, 17)),),
        0.5,
        5,
    ),
}
SHOTS = 272  # pictures in one batch, whatever the length of its sequences
HEADLINE_IF = 0.3  # share of the conditional sequences that use the rule of "if-animal"

ID = {word: i for i, word in enumerate(vocabulary())}
PICTURE = [ID["<image>"]] * TOKENS_PER_IMAGE
TURN = TOKENS_PER_IMAGE + 3  # tokens of a turn with the bare query: the picture, "?", the answer, the end


def pictures_in_sequence(phase: Phase, step: int, steps: int) -> int:
    """The curriculum's length at a step of a run of `steps`."""
    turns = [turns for start, turns in phase.lengths if step >= start * steps][-1]
    return turns[step % len(turns)]


def draw_rule(phase: Phase, rng: np.random.Generator) -> Rule | None:
    """A random trained rule for a bare sequence; None stands for a sequence of plain questions."""
    family = rng.choice(list(phase.mix), p=list(phase.mix.values()))
    if family == "attribute":
        return BASE[rng.integers(len(BASE))]
    if family == "conditional":
        if rng.random() < HEADLINE_IF:
            return RULES["if-animal"]
        return conditional(*IF_TRAINED[rng.integers(len(IF_TRAINED))])
    if family == "match":
        return match(*MATCH_TRAINED[rng.integers(len(MATCH_TRAINED))])
    if family == "relabel":
        name = RELABEL_TRAINED[rng.integers(len(RELABEL_TRAINED))]
        # new words, or the attribute's own words in another order
        words = NONSENSE if rng.random() < phase.nonsense else VALUES[name]
        return relabel(name, list(rng.permutation(words)[: len(VALUES[name])]))
    return None


@lru_cache
def pool_labels(path: Path) -> tuple[list[dict[str, str]], dict[tuple[str, str], np.ndarray]]:
    """The pool's labels in words, and for each (attribute, value) the pictures that have it."""
    y = np.load(path)
    words = [{a: VALUES[a][v] for a, v in zip(ATTRIBUTES, row, strict=True)} for row in y.tolist()]
    where = {(a, v): np.flatnonzero(y[:, i] == j) for i, a in enumerate(ATTRIBUTES) for j, v in enumerate(VALUES[a])}
    return words, where


def pick(rule: Rule, n: int, words: list, where: dict, rng: np.random.Generator) -> list[int]:
    """n pictures for a rule; where a rule has two sides, both are equally likely."""
    chosen = rng.integers(len(words), size=n).tolist()
    if rule.test:
        attr, value = rule.test
        for i, wanted in enumerate(rng.random(n) < 0.5):
            if wanted:
                side = where[rule.test]
                chosen[i] = int(side[rng.integers(len(side))])
            while not wanted and words[chosen[i]][attr] == value:
                chosen[i] = int(rng.integers(len(words)))
    return chosen


def plain_turn(
    y: dict[str, str], kind: str, wording: int, rng: np.random.Generator, yes_rate: float = YES_RATE
) -> tuple[str, str]:
    """A plain question about a picture and its answer; `kind` is an attribute or "exists"."""
    question = QUESTIONS[kind][wording % len(QUESTIONS[kind])]
    if kind != "exists":
        return question, y[kind]
    if rng.random() < yes_rate:
        return question.format(y["object"]), "yes"
    others = [name for name in VALUES["object"] if name != y["object"]]
    return question.format(others[rng.integers(len(others))]), "no"


def make_batch(
    name: str, labels: Path, steps: int, shots: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids [b, length] padded on the right, targets of that shape (-100: none), the pictures' places in the pool.

    A turn with the bare query has TURN tokens, so n of them give the length; plain turns are longer and fewer fit.
    """
    rng = np.random.default_rng([seed, step])
    words, where = pool_labels(labels)
    phase = PHASES[name]
    n = pictures_in_sequence(phase, step, steps)
    b = shots // n
    ids = np.full((b, n * TURN), ID["<pad>"])
    goals = np.full((b, n * TURN), -100)
    used = []
    for row in range(b):
        rule = draw_rule(phase, rng)
        chosen = pick(rule, n, words, where, rng) if rule else rng.integers(len(words), size=n).tolist()
        # half of the plain sequences repeat one question, the others mix them
        kinds = [*QUESTIONS, *["exists"] * (phase.exists - 1)]
        fixed = (kinds[rng.integers(len(kinds))], int(rng.integers(2))) if rng.random() < 0.5 else None
        end = 0
        for i in chosen:
            if rule:
                question, answer = "?", rule.answer(words[i])
            else:
                kind, wording = fixed or (kinds[rng.integers(len(kinds))], int(rng.integers(2)))
                question, answer = plain_turn(words[i], kind, wording, rng)
            turn = [*PICTURE, *(ID[w] for w in question.replace("?", " ?").split()), ID[answer], ID["<end>"]]
            if end + len(turn) > n * TURN:
                break
            ids[row, end : end + len(turn)] = turn
            end += len(turn)
            # the logits at the last word of the question predict the answer, those at the answer predict the end
            goals[row, end - 3 : end - 1] = turn[-2:]
            used.append(i)
    return ids, goals, np.array(used)
