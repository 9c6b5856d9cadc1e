"""Which demonstrations a query is shown: laws over random pools, and similarity against states read by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import steer
from steer import Demonstrations, Example
from steer.prompts import Prompt

from .subjects import SUBJECTS, passing, subject

POOL = tuple(Example(f"q{i}", f"a{i % 3}") for i in range(12))
pools = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=9).map(
    lambda rows: tuple(Example(f"q{question}", f"a{answer}") for question, answer in rows)
)
rules = st.builds(
    dict,
    shots=st.integers(0, 6),
    choose=st.sampled_from(["random", "balanced"]),
    order=st.sampled_from(["random", "fixed"]),
    orders=st.integers(1, 5),
    seed=st.integers(0, 3),
)


@settings(max_examples=60)
@given(pool=pools, rule=rules, asked=st.lists(st.integers(0, 11), min_size=1, max_size=6))
def test_what_a_query_is_shown_depends_on_nothing_beside_it(pool, rule, asked):
    shown = Demonstrations(pool, **rule)
    queries = [Example(f"q{question}", "any") for question in asked]
    together = shown.prompts(queries)
    assert [group[0] for group in together] == shown.for_queries(queries)
    assert shown.for_queries(queries[::-1])[::-1] == shown.for_queries(queries)
    for query, group in zip(queries, together, strict=True):
        assert shown.prompts([replace(query, answer="")])[0][0].shots == group[0].shots
        others = [one for one in pool if one.question != query.question]
        shots = group[0].shots
        assert len(shots) == min(rule["shots"], len(others))
        assert not Counter(shots) - Counter(others)
        assert all(prompt.query == query and Counter(prompt.shots) == Counter(shots) for prompt in group)
        assert len(group) == min(rule["orders"], math.factorial(len(shots)))


def test_orders_are_different_orders():
    (group,) = Demonstrations(POOL, shots=4, orders=24).prompts([Example("new")])
    assert len({prompt.shots for prompt in group}) == 24


@settings(max_examples=30)
@given(order=st.sampled_from(["random", "fixed"]), seed=st.integers(0, 99), shots=st.integers(1, 12))
def test_balanced_shows_every_answer_as_often_as_any_other(order, seed, shots):
    """Of 12 examples 8 have one answer; the smallest class has 2."""
    pool = tuple(Example(f"q{i}", "abbccccccccc"[i]) for i in range(12))
    (prompt,) = Demonstrations(pool, shots=shots, choose="balanced", order=order, seed=seed).for_queries([Example("x")])
    counts = Counter(shot.answer for shot in prompt.shots)
    assert sum(counts.values()) == shots
    for answer, most in {"a": 1, "b": 2, "c": 9}.items():
        full = max(counts.values())
        assert counts[answer] >= min(most, full - 1)


def test_fixed_shows_all_queries_the_same_and_random_does_not():
    queries = [Example(f"new {i}") for i in range(20)]
    assert len({p.shots for p in Demonstrations(POOL, order="fixed").for_queries(queries)}) == 1
    assert len({p.shots for p in Demonstrations(POOL).for_queries(queries)}) > 15
    one, other = (Demonstrations(POOL, order="fixed", seed=seed).for_queries(queries)[0].shots for seed in (0, 1))
    assert one != other


def test_every_example_is_shown_about_as_often():
    """2000 queries, 3 of 12 shown to each: 500 times each in the mean, with a standard deviation of 19."""
    shown = Demonstrations(POOL, shots=3).for_queries([Example(f"new {i}") for i in range(2000)])
    counts = Counter(shot for prompt in shown for shot in prompt.shots)
    assert max(abs(counts[one] - 500) for one in POOL) < 90
    firsts = Counter(prompt.shots[0] for prompt in shown)
    assert max(abs(firsts[one] - 2000 / 12) for one in POOL) < 65


def test_a_query_of_the_pool_gives_its_place_to_another_of_its_answer():
    shown = Demonstrations(POOL, shots=6, choose="balanced", order="fixed")
    usual = shown.for_queries([Example("new")])[0].shots
    for query in usual:
        there = shown.for_queries([query])[0].shots
        assert query not in there
        assert Counter(shot.answer for shot in there) == {"a0": 2, "a1": 2, "a2": 2}
        assert len(set(usual) & set(there)) == 5


def test_pictures_tell_queries_with_equal_words_apart():
    one = subject("tiny-vlm")
    copies = [Example(e.question, e.answer, tuple(picture.copy() for picture in e.images)) for e in one.examples]
    shown = Demonstrations(one.examples, shots=7).for_queries(copies)
    for copy, own, prompt in zip(copies, one.examples, shown, strict=True):
        assert prompt.query is copy
        assert {id(shot) for shot in prompt.shots} == {id(e) for e in one.examples if e is not own}


@pytest.mark.parametrize("name", SUBJECTS)
def test_similar_is_by_the_cosine_of_states_read_one_at_a_time(name):
    one = subject(name)
    pool, queries = one.examples[:6], one.examples[4:]

    def state(example):
        return passing(one.layers[-1], one.model, one.by_hand(Prompt(replace(example, answer=""))))[0, -1].double()

    shown = Demonstrations(pool, shots=3, choose="similar", order="fixed").for_queries(
        queries, one.model, one.processor
    )
    for query, prompt in zip(queries, shown, strict=True):
        others = [example for example in pool if example is not query]
        alike = [float(torch.cosine_similarity(state(query), state(other), dim=0)) for other in others]
        ranked = sorted(zip(alike, map(id, others), strict=True))
        assert [id(shot) for shot in prompt.shots] == [shot for _, shot in ranked[-3:]]
    mixed = Demonstrations(pool, shots=3, choose="similar").for_queries(queries, one.model, one.processor)
    for fixed, other in zip(shown, mixed, strict=True):
        assert {*map(id, fixed.shots)} == {*map(id, other.shots)}


@pytest.mark.parametrize(
    "make, facts",
    [
        (lambda: Demonstrations((Example("q"),)), ["pool[0]", "no answer"]),
        (lambda: Demonstrations(("q",)), ["pool[0]", "str"]),
        (lambda: Demonstrations(POOL, choose="closest"), ["closest", "random", "similar", "balanced"]),
        (lambda: Demonstrations(POOL, order="fix"), ["'fix'", "did you mean 'fixed'"]),
        (lambda: Demonstrations(POOL, shots=-1), ["shots", "-1"]),
        (lambda: Demonstrations(POOL, orders=0), ["orders", "0"]),
        (lambda: Demonstrations(POOL, choose="similar").for_queries(POOL), ["similar", "model", "processor"]),
        (lambda: Demonstrations(POOL).for_queries([Example("q", images=(object(),))]), ["object", "PIL"]),
    ],
)
def test_errors_say_what_is_wrong(make, facts):
    with pytest.raises(steer.SteerError) as error:
        make()
    for fact in facts:
        assert fact in str(error.value)


def test_a_list_will_do_for_a_pool_and_no_queries_for_queries():
    assert Demonstrations(list(POOL)) == Demonstrations(POOL)
    assert Demonstrations(POOL).prompts([]) == []
    assert Demonstrations(()).for_queries([POOL[0]]) == [Prompt(POOL[0])]
