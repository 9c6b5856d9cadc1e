"""A library of shifts against the one that each prompt picks, attached by plain hooks."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import steer
from steer.errors import InterventionError, UnknownNameError
from steer.prompts import Prompt, encode
from tests.engine.helpers import randn, tiny_llama

from .gating import greedy, inputs_of, shift_of, state, vector, written
from .subjects import SUBJECTS, subject, word_tokenizer

ROWS, COUNT = (0, 4, 2, 5), 4


@cache
def library(name: str):
    """Three shifts, the third with no row of its own, and what each of four prompts picks, worked out from hooks."""
    one = subject(name)
    last = len(one.layers) - 1
    method = steer.create("gate_retrieval", layer=1).over(
        *(vector(one, min(1 + i % 2, last), seed=i) for i in range(3))
    )
    method.fit(one.model, one.processor, one.examples, labels=[0, 0, 1, 1, 2, 2, None, None], batch_size=3)
    keys, centre = method.tensors["keys"].double(), method.tensors["centre"].double()
    scores = []
    for index in ROWS:
        h = state(one, inputs_of(one, index), 1, "last") - centre
        scores.append([float(h @ key / (h.norm() * key.norm())) for key in keys])
    best = sorted(max(row) for row in scores)
    method.tensors["threshold"] = torch.tensor((best[0] + best[1]) / 2)  # one picks none
    picks = [row.index(max(row)) if max(row) > (best[0] + best[1]) / 2 else None for row in scores]
    return one, method, picks


@pytest.mark.parametrize("name", SUBJECTS)
def test_each_row_is_steered_by_the_member_that_it_picks(name):
    one, method, picks = library(name)
    assert picks.count(None) == 1
    batch = encode(one.model, one.processor, [Prompt(one.examples[i]) for i in ROWS])
    with steer.attach(one.model, method):
        got = written(one, batch, COUNT)
    for index, pick, row in zip(ROWS, picks, got, strict=True):
        shifts = [] if pick is None else [shift_of(method.wrapped()[pick])]
        assert row == greedy(one, inputs_of(one, index), shifts, COUNT)
    assert method.decide(one.model, one.processor, [one.examples[i] for i in ROWS], batch_size=3) == picks


def test_beams_of_a_prompt_share_its_pick():
    one, method, _ = library("llama")
    batches = [encode(one.model, one.processor, [Prompt(one.examples[i]) for i in rows]) for rows in (ROWS, *zip(ROWS))]
    with steer.attach(one.model, method):
        whole, *alone = (written(one, batch, COUNT, num_beams=3) for batch in batches)
    assert whole == [rows[0] for rows in alone]


def test_keys_are_class_means_about_their_centre():
    one, method, _ = library("llama")
    classes = [state(one, inputs_of(one, i), 1, "last") for i in range(8)]
    every = [
        torch.stack([classes[2 * c + i] for c, i in enumerate(pick)])
        for pick in [[i >> b & 1 for b in range(4)] for i in range(16)]
    ]
    # One of each pair is held out; the keys are those of one of the 16 choices.
    truths = [(rows[:3] - rows.mean(0), rows.mean(0)) for rows in every]
    close = [
        torch.allclose(method.tensors["keys"].double(), keys, atol=1e-4)
        and torch.allclose(method.tensors["centre"].double(), centre, atol=1e-4)
        for keys, centre in truths
    ]
    assert close.count(True) == 1


def planted():
    """A llama in whose embeddings three groups of words point three ways, and a fourth nowhere."""
    model = tiny_llama(pad_token_id=None)
    weight = model.get_input_embeddings().weight.data
    for group in range(3):
        weight[6 + 20 * group : 26 + 20 * group] += 4 * torch.nn.functional.normalize(randn(64, seed=20 + group), dim=0)
    generator = torch.Generator().manual_seed(2)

    def examples(group: int, count: int) -> list[steer.Example]:
        low = 6 + 20 * group
        words = torch.randint(low, min(low + 20, 90), (count, 3), generator=generator).tolist()
        return [steer.Example(" ".join(f"w{i}" for i in row)) for row in words]

    return model, examples


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("with_none", [False, True])
def test_planted_groups_are_told_apart(with_none, pool):
    model, examples = planted()
    inner = steer.create("icv", layers=(2,))
    inner.tensors = {"directions": randn(3, 64)}
    method = steer.create("gate_retrieval", pool=pool).over(inner, inner, inner)
    labels = [0, 1, 2, *([None] if with_none else [])]
    groups = [3 if label is None else label for label in labels]
    shown = [one for group in groups for one in examples(group, 12)]
    method.fit(model, word_tokenizer(), shown, labels=[label for label in labels for _ in range(12)], progress=False)
    assert float(method.tensors["accuracy"]) > 0.9
    asked = [one for group in groups for one in examples(group, 6)]
    found = method.decide(model, word_tokenizer(), asked)
    truth = [label for label in labels for _ in range(6)]
    assert sum(a == b for a, b in zip(found, truth, strict=True)) >= 0.85 * len(truth)
    if not with_none:
        assert float(method.tensors["threshold"]) == -1.0


def test_labels_that_do_not_fit_are_refused():
    one = subject("llama")
    two = steer.create("gate_retrieval").over(vector(one, 1), vector(one, 2))
    with pytest.raises(steer.SteerError, match=r"8 examples, 2 labels"):
        two.fit(one.model, one.processor, one.examples, labels=[0, 1])
    with pytest.raises(UnknownNameError, match=r"'2'"):
        two.fit(one.model, one.processor, one.examples, labels=[0, 0, 0, 0, 1, 1, 2, 2])
    with pytest.raises(steer.SteerError, match=r"too few: \[1\]"):
        two.fit(one.model, one.processor, one.examples, labels=[0, 0, 0, 0, 0, 0, 0, 1])
    with pytest.raises(steer.SteerError, match="None"):
        steer.create("gate_retrieval").over(vector(one, 1)).fit(one.model, one.processor, one.examples, labels=[0] * 8)


def test_another_number_of_members_than_keys_is_refused():
    one, method, _ = library("llama")
    fewer = steer.create("gate_retrieval", layer=1).over(vector(one, 1))
    fewer.tensors |= {name: x for name, x in method.tensors.items() if not name.startswith("inner.")}
    with pytest.raises(InterventionError, match=r"must be \[1, 64\].*is \[3, 64\]"):
        steer.attach(one.model, fewer)
