"""Make batches of questions about a pool of scenes: tokens, who may look at whom, and targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from model import TOKENS_PER_IMAGE

from steer.zoo._scene_words import (
    CELLS,
    COLOURS,
    COUNTS,
    FREQUENCY,
    NOTHING,
    OBJECTS,
    PARTNERS,
    POPULAR,
    QUESTIONS,
    YES_RATE,
    YES_RATE_POPULAR,
    vocabulary,
)

ID = {word: i for i, word in enumerate(vocabulary())}
NAMES = list(OBJECTS)
PICTURE = [ID["<image>"]] * TOKENS_PER_IMAGE
TURNS = 5  # pictures in a long sequence


@dataclass(frozen=True)
class Phase:
    """What one run of stage 2 trains on."""

    seed: int
    pool: int  # the seed of the scenes
    steps: int
    rate: float  # peak learning rate
    align: float  # weight of the loss that makes a picture's tokens resemble the words for what they show
    many_from: float = 0.0  # the share of the steps after which there are sequences of several pictures
    lean: bool = False  # "yes" at YES_RATE instead of half of the time, and "no" only for random objects


PHASES = {
    "first": Phase(2, 100, 1800, 1.5e-3, 0.5, many_from=0.3),
    # more of the same, on other scenes
    "second": Phase(3, 101, 800, 8e-4, 0.3),
    # short: the answers lean to "yes", as those of large models do
    "last": Phase(4, 102, 200, 3e-4, 0.1, lean=True),
}
KINDS = {"exists": 0.5, "caption": 0.2, "where": 0.14, "count": 0.07, "say": 0.06, "colour": 0.03}
# two shapes: one picture and many questions that do not see each other, or a conversation about several pictures
SHAPES = {"one": (64, 80), "many": (40, 120)}  # rows and tokens
MANY_EVERY = 4  # one step in so many has the second shape

Turn = tuple[str, str]  # a question and its answer
Row = list[tuple[bool, Turn | None]]  # see `lay_out`


@dataclass(frozen=True)
class Labels:
    """What a scene of the pool shows, in words."""

    names: tuple[str, ...]
    cells: tuple[str, ...]
    colour: str
    word: str | None


@dataclass(frozen=True)
class Batch:
    """Arrays [rows, length]: token ids; the turn that a token belongs to (0 is seen by all after it); its place;
    the target (-100: none) and its weight. `used` [pictures] has the places in the pool, in the order of the tokens."""

    ids: np.ndarray
    turn: np.ndarray
    place: np.ndarray
    goal: np.ndarray
    weight: np.ndarray
    used: np.ndarray


@lru_cache
def pool_labels(path: Path) -> list[Labels]:
    """The pool's labels, from six class numbers a scene: four cells, the word, the colour."""
    words = [*NAMES, None]
    colours = list(COLOURS)
    found = []
    for row in np.load(path).tolist():
        there = [(words[x], cell) for x, cell in zip(row[:4], CELLS, strict=True) if words[x]]
        found.append(Labels(*zip(*there, strict=True), colours[row[5]], words[row[4]]))
    return found


def absent(y: Labels, kind: str, rng: np.random.Generator) -> str:
    """An object that is not there, as POPE draws them."""
    choices = [name for name in NAMES if name not in y.names]
    if kind == "adversarial":
        partners = [PARTNERS[name] for name in y.names if name in PARTNERS and PARTNERS[name] not in y.names]
        choices = partners or choices
    if kind == "popular":
        choices = [name for name in choices if name in POPULAR] or choices
    weights = [1.0 if kind == "random" else FREQUENCY[name] for name in choices]
    return choices[int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights)))]


def ask(y: Labels, kind: str, lean: bool, rng: np.random.Generator) -> Turn:
    """A question of one kind and its answer."""
    i = rng.integers(len(y.names))
    if kind == "exists":
        popular = lean and y.names[i] in POPULAR
        if rng.random() < (YES_RATE_POPULAR if popular else YES_RATE if lean else 0.5):
            return QUESTIONS[kind].format(y.names[i]), "yes"
        sort = "random" if lean else ("random", "popular", "adversarial")[rng.integers(3)]
        return QUESTIONS[kind].format(absent(y, sort, rng)), "no"
    if kind == "where":
        return QUESTIONS[kind].format(y.names[i]), y.cells[i]
    answers = {
        "caption": " ".join(y.names),
        "colour": y.colour,
        "count": COUNTS[len(y.names) - 1],
        "say": y.word or NOTHING,
    }
    return QUESTIONS[kind], answers[kind]


def tokens(turn: Turn) -> tuple[list[int], int]:
    """A turn's tokens without its picture, and how many of them are targets: the answer and the end."""
    question, answer = turn
    words = [ID[w] for w in question.replace("?", " ?").split()]
    goal = [*(ID[w] for w in answer.split()), ID["<end>"]]
    return words + goal, len(goal)


def lay_out(rows: list[Row], length: int) -> tuple[np.ndarray, ...]:
    """The five arrays [rows, length] of a Batch.

    A turn marked true brings a picture and is seen by all that follows; without a question it is the picture alone.
    Turns marked false ask about the last picture and do not see each other: each begins at the same place after it.
    """
    ids, turn, goal = (np.full((len(rows), length), fill) for fill in (ID["<pad>"], -1, -100))
    place, weight = np.zeros((len(rows), length), int), np.zeros((len(rows), length), np.float32)
    for r, row in enumerate(rows):
        end = base = 0
        for t, (shared, asked) in enumerate(row):
            body, n = tokens(asked) if asked else ([], 0)
            body = PICTURE + body if shared else body
            start, where = end if shared else base, slice(end, end + len(body))
            ids[r, where] = body
            turn[r, where] = 0 if shared else t
            place[r, where] = range(start, start + len(body))
            end += len(body)
            base = end if shared else base
            if asked:
                # the logits at the last word of the question predict the first of the answer
                goal[r, end - n - 1 : end - 1] = body[-n:]
                weight[r, end - n - 1 : end - 1] = 1
                weight[r, end - 2] = 0.1 if n == 2 else 1  # the end after one word is trivial
    return ids, turn, place, goal, weight


def make_batch(name: str, labels: Path, steps: int, small: bool, seed: int, step: int) -> Batch:
    """The batch of a step; it depends on the seed and the step alone."""
    rng = np.random.default_rng([seed, step])
    pool, phase = pool_labels(labels), PHASES[name]
    many = step % MANY_EVERY == 0 and step >= phase.many_from * steps
    height, length = SHAPES["many" if many else "one"]
    kinds, shares = list(KINDS), np.cumsum(list(KINDS.values()))
    rows: list[Row] = []
    used: list[int] = []
    for _ in range(4 if small else height):
        fixed = kinds[int(np.searchsorted(shares, rng.random()))] if many and rng.random() < 0.5 else None
        row: Row = []
        room = length - (0 if many else len(PICTURE))
        i = int(rng.integers(len(pool)))
        while len(row) < (TURNS if many else 99):
            i = int(rng.integers(len(pool))) if many else i
            asked = ask(pool[i], fixed or kinds[int(np.searchsorted(shares, rng.random()))], phase.lean, rng)
            room -= len(tokens(asked)[0]) + many * len(PICTURE)
            if room < 0:
                break
            row.append((many, asked))
            if many:
                used.append(i)
        if not many:
            used.append(i)
            row = [(True, None), *row]
        rows.append(row)
    return Batch(*lay_out(rows, length), np.array(used))
