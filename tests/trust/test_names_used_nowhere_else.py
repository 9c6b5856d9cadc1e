"""Public names that no other test uses by name, each by what it promises."""

from __future__ import annotations

import pytest
import torch

import steer
from steer import errors, gates, latch, ops, positions, sites, testing
from steer.memory import Chooser, Scorer
from tests.engine.helpers import HEAD_DIM, HEADS, WIDTH, randn, tiny_llama, tokens


def test_an_unknown_name_is_told_with_its_nearest_and_not_at_any_length():
    error = errors.unknown_name("site", "resid_ot", ["resid_out", "head_q"], "look at steer.sites")
    assert isinstance(error, errors.UnknownNameError)
    for fact in ("resid_ot", "resid_out, head_q", "did you mean 'resid_out'", "look at steer.sites"):
        assert fact in str(error)
    assert len(str(errors.unknown_name("site", "x" * 10**6, ["y" * 10**6]))) < 1000


def test_only_positions_that_differ_between_rows_need_a_frame():
    assert not positions.all().needs_frame
    assert positions.last_prompt().needs_frame
    assert positions.all().resolve_keys(None, 5) is None


def test_a_progress_bar_gives_back_the_items(capsys):
    assert list(steer.fitting.track(range(3), "counting", progress=False)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_gate_says_what_it_reads():
    weight = randn(HEADS, HEAD_DIM)
    plain, whole = gates.Sigmoid(weight), gates.Sigmoid(weight, minus_lse=True)
    assert (plain.needs_query, plain.needs_lse) == (True, False)
    assert (whole.needs_query, whole.needs_lse) == (True, True)
    held = latch.Latch(lambda state: torch.ones(len(state), 1))
    for before, needs in ((None, (False, False)), (plain, (True, False)), (whole, (True, True))):
        gate = latch.Latched(held, member=0, before=before)
        assert (gate.needs_query, gate.needs_lse) == needs


def test_a_decision_by_the_prompt_is_obeyed_row_by_row():
    """Rows whose state says yes are shifted as without a decision, the others are those of the plain model."""
    model, ids = tiny_llama(), tokens(2, 5)
    shift = steer.Intervention(sites.resid_out(layers=1), ops.Add(randn(WIDTH)))
    plain = model(ids).logits
    with steer.attach(model, shift):
        shifted = model(ids).logits
    decided = latch.latched([[shift]], lambda state: torch.tensor([[1.0], [0.0]]), 1, "last")
    with steer.attach(model, *decided):
        found = model(ids).logits
    torch.testing.assert_close(found[0], shifted[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], plain[1])


def test_a_decision_that_comes_too_late_is_refused():
    latch.check_order(2, 2, "mine")
    with pytest.raises(errors.InterventionError, match="mine"):
        latch.check_order(3, 2, "mine")


def test_every_rule_of_memories_has_what_the_bases_ask_for():
    found = [info.cls for info in steer.methods().values() if issubclass(info.cls, Chooser | Scorer)]
    assert len(found) > 5
    for cls in found:
        assert callable(cls.observers)
        assert callable(cls.compress)


def test_the_checks_for_plugins_tell_what_acts_from_what_does_nothing():
    model, inputs = tiny_llama(), {"input_ids": tokens(2, 5)}
    silent, acting = (steer.create("head_scale", heads=[[1, 0]], factor=factor) for factor in (1.0, 3.0))
    for found in (testing.check_identity(silent, model, inputs), testing.check_fires(acting, model, inputs)):
        assert isinstance(found, testing.Check)
        assert found.status == "pass"
    with pytest.raises(AssertionError):
        testing.check_identity(acting, model, inputs)
    with pytest.raises(AssertionError):
        testing.check_fires(silent, model, inputs)
