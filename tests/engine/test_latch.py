"""A decision kept for each row, handed on to the beams of that row."""

from __future__ import annotations

import pytest
import torch

from steer.errors import InterventionError
from steer.latch import Latch


def latch_of(*decided: float) -> Latch:
    latch = Latch(lambda states: states)
    latch.take(torch.tensor(decided).unsqueeze(-1))
    return latch


def test_beams_made_after_the_prompt_was_read_lie_beside_each_other():
    got = latch_of(0.0, 1.0).strength(0, torch.zeros(6, 1, 3, 2), "here")
    assert got.shape == (6, 1, 1, 1)
    assert got.flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_a_batch_of_other_rows_and_a_missing_prompt_are_errors_that_say_so():
    with pytest.raises(InterventionError, match=r"here.*2 rows.*has 3"):
        latch_of(0.0, 1.0).strength(0, torch.zeros(3, 1), "here")
    with pytest.raises(InterventionError, match=r"here.*no prompt has passed"):
        Latch(lambda states: states).strength(0, torch.zeros(3, 1), "here")


def test_a_new_prompt_decides_anew():
    latch = latch_of(0.0, 1.0)
    latch.take(torch.tensor([[1.0]]))
    assert latch.strength(0, torch.zeros(2, 1), "here").flatten().tolist() == [1, 1]
