"""Which tokens of student and teacher are the same: laws on random sequences, and the rows that they stand in."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from steer.training.align import common_suffix, last_real, real_tokens, written_tokens

tokens = st.lists(st.integers(0, 3), max_size=12)


@given(tokens, tokens)
def test_the_common_suffix_is_common_and_no_longer_one_is(first, second):
    count = common_suffix(first, second)
    assert first[len(first) - count :] == second[len(second) - count :]
    if count < min(len(first), len(second)):
        assert first[-count - 1] != second[-count - 1]


@given(tokens, tokens, tokens)
def test_the_common_suffix_of_what_ends_alike(first, second, end):
    count = common_suffix(first + end, second + end)
    assert count == len(end) + common_suffix(first, second)
    assert count == common_suffix(second + end, first + end)
    assert common_suffix(first, first) == len(first)


rows = st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(0, 3))


@given(st.lists(rows, min_size=1, max_size=4), st.data())
def test_last_real_counts_from_the_end_whatever_the_padding(shapes, data):
    width = max(sum(shape) for shape in shapes)
    mask = torch.zeros(len(shapes), width, dtype=torch.bool)
    for b, (left, real, _) in enumerate(shapes):
        mask[b, left : left + real] = True
    counts = [data.draw(st.integers(0, real)) for _, real, _ in shapes]
    truth = [
        (b, column)
        for b, (left, real, _) in enumerate(shapes)
        for column in range(left + real - counts[b], left + real)
    ]
    got = list(zip(*(x.tolist() for x in last_real(mask, counts)), strict=True))
    assert got == truth


def test_last_real_where_prompts_are_padded_on_the_left_and_answers_on_the_right():
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 0]]).bool()
    rows, columns = last_real(mask, [2, 3, 1])
    assert rows.tolist() == [0, 0, 1, 1, 1, 2]
    assert columns.tolist() == [3, 4, 4, 5, 6, 5]


def test_tokens_of_the_tower_that_writes():
    inputs = {
        "input_ids": torch.tensor([[0, 7, 8], [5, 6, 7]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    assert real_tokens(inputs) == [[7, 8], [5, 6, 7]]
    decoder = {"decoder_input_ids": torch.tensor([[2, 9], [2, 0]]), "decoder_attention_mask": torch.eye(2)}
    assert real_tokens({**inputs, **decoder}) == [[2], [0]]
    assert written_tokens({"input_ids": inputs["input_ids"]})[1].all()
