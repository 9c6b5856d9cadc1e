"""Shots, halves of classes and splits: sizes by counting, and what a draw may depend on by changing the rest."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import steer
from steer.data import classes_of, few_shot, split, split_classes


def labelled(counts: dict[str, int]) -> list[steer.Example]:
    """Examples told apart by their pictures, classes mixed."""
    rows = [steer.Example("", name, (f"{name}{i}",)) for name, count in counts.items() for i in range(count)]
    return rows[::2] + rows[1::2]


def test_classes_are_sorted_and_named_once():
    assert classes_of(labelled({"b": 2, "a": 3, "B": 1})) == ["B", "a", "b"]


counts = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(3, 9), min_size=1, max_size=4)


@given(counts=counts, shots=st.integers(1, 3), seed=st.integers(0, 3))
def test_shots_are_as_many_of_each_class_without_replacement(counts, shots, seed):
    examples = labelled(counts)
    drawn = few_shot(examples, shots, seed)
    assert [one.answer for one in drawn] == [name for name in sorted(counts) for _ in range(shots)]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(examples)
    assert drawn == few_shot(iter(examples), shots, seed)


def test_draws_are_nested_and_depend_on_no_other_class():
    examples = labelled({"a": 20, "b": 20, "c": 20})
    sixteen = few_shot(examples, 16)
    four = few_shot(examples, 4)
    for name in "abc":
        by_name = [[one for one in drawn if one.answer == name] for drawn in (sixteen, four)]
        assert by_name[0][:4] == by_name[1]
        assert few_shot([one for one in examples if one.answer == name], 4) == by_name[1]


def test_every_example_is_drawn_about_as_often():
    examples = labelled({"a": 5, "b": 5})
    often = Counter(one.images for seed in range(500) for one in few_shot(examples, 2, seed))
    # Each has probability 2/5: mean 200, standard deviation 11.
    assert len(often) == 10
    assert all(145 < count < 255 for count in often.values())
    # Classes are drawn apart: the same places in both, one time in 10.
    same = sum(len({one.images[0][1:] for one in few_shot(examples, 2, seed)}) == 2 for seed in range(500))
    assert 20 < same < 90


def test_the_draw_is_the_same_in_every_run_and_release():
    drawn = [one.images[0] for one in few_shot(labelled({"owl": 6, "fox": 6}), 3, seed=1)]
    assert drawn == ["fox5", "fox4", "fox0", "owl4", "owl3", "owl1"]


def test_classes_with_fewer_are_named_or_taken_whole():
    examples = labelled({"fox": 2, "owl": 1, "vole": 4})
    with pytest.raises(
        steer.SteerError, match=r"2 of 3 classes have fewer than 3 .*fox \(2\), owl \(1\);.*allow_fewer"
    ):
        few_shot(examples, 3)
    drawn = few_shot(examples, 3, allow_fewer=True)
    assert Counter(one.answer for one in drawn) == {"fox": 2, "owl": 1, "vole": 3}


@pytest.mark.parametrize("n, base", [(2, 1), (3, 2), (10, 5), (37, 19), (101, 51)])
def test_the_larger_half_of_the_classes_is_base(n, base):
    names = [f"{i:03}" for i in range(n)]
    assert split_classes(iter([*reversed(names), names[0]])) == (names[:base], names[base:])


def test_one_class_has_no_halves():
    with pytest.raises(steer.SteerError, match="1 classes cannot be halved"):
        split_classes(["fox", "fox"])


@given(
    counts=counts, seed=st.integers(0, 3), fractions=st.sampled_from([(0.5, 0.2, 0.3), (0.9, 0.1), (1 / 3,) * 3, (1,)])
)
def test_a_split_keeps_every_example_and_the_classes_shares(counts, seed, fractions):
    examples = labelled(counts)
    parts = split(examples, fractions, seed)
    assert sorted(one.images for part in parts for one in part) == sorted(one.images for one in examples)
    for part, share in zip(parts, fractions, strict=True):
        sizes = Counter(one.answer for one in part)
        assert list(dict.fromkeys(one.answer for one in part)) == sorted(counts)
        for name, count in counts.items():
            # Rounded by less than one, or one where it would be none.
            assert sizes[name] == 1 or abs(sizes[name] - count * Fraction(share)) < 1 + 1e-9
    assert parts == split(examples, fractions, seed)


@pytest.mark.parametrize(
    "n, fractions, sizes",
    [
        (10, (0.5, 0.2, 0.3), (5, 2, 3)),
        (100, (0.29, 0.71), (29, 71)),
        (3, (0.9, 0.1), (2, 1)),
        (5, (0.5, 0.5), (3, 2)),
        (7, (0.5, 0.2, 0.3), (4, 1, 2)),
        (4, (0.05, 0.9, 0.05), (1, 2, 1)),
    ],
)
def test_sizes_of_a_split_by_hand(n, fractions, sizes):
    assert tuple(map(len, split(labelled({"a": n}), fractions))) == sizes


def test_a_split_depends_on_the_seed_and_on_no_other_class():
    examples = labelled({"a": 20, "b": 20})
    halves = [split(examples, (0.5, 0.5), seed)[0] for seed in range(20)]
    assert len({tuple(half) for half in halves}) == 20
    only = split([one for one in examples if one.answer == "a"], (0.5, 0.5))[0]
    assert only == [one for one in halves[0] if one.answer == "a"]


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda rows: few_shot(rows, 0), "shots is 0"),
        (lambda rows: few_shot([], 1), "there are no examples"),
        (lambda rows: classes_of([*rows, steer.Example("q")]), "example 6 has no answer"),
        (lambda rows: split(rows, (0.5, 0.4)), r"\(0.5, 0.4\).*add up to 1"),
        (lambda rows: split(rows, (1.5, -0.5)), "positive"),
        (lambda rows: split(rows, ()), "add up to 1"),
        (lambda rows: split(rows, (0.25,) * 4), r"fewer examples than the 4 parts: a \(3\), b \(3\)"),
    ],
)
def test_what_cannot_be_drawn_says_so(call, reason):
    with pytest.raises(steer.SteerError, match=reason):
        call(labelled({"a": 3, "b": 3}))
