"""Each check finds the method that breaks its promise, and passes the one that does not."""

from __future__ import annotations

import pytest
import torch

import steer
from steer import testing
from steer.errors import SteerError, UnknownNameError

from .methods import BREAKS, TRACES, Right, RightLearned, applying, changed, starts_at_one

CHECKS = ("fires", "identity", "restores", "decoding", "saves", "learns")


@pytest.fixture(scope="module")
def llava():
    return testing.tiny("llava")


def run(name, method, model, inputs, folder):
    """One check by name, with the method's class registered."""
    more = (folder,) if name == "saves" else ()
    with testing.plugged(type(method)):
        return getattr(testing, f"check_{name}")(method, model, inputs, *more)


@pytest.mark.parametrize("broken", BREAKS)
def test_what_breaks_a_promise_is_found(broken, llava, tmp_path):
    name, make, fact = BREAKS[broken]
    with pytest.raises(AssertionError) as failure:
        run(name, make(llava[0]), *llava, tmp_path)
    assert fact in str(failure.value)


@pytest.mark.parametrize("trace", TRACES)
def test_what_is_left_behind_is_found(trace):
    model, inputs = testing.tiny("llava")
    make, fact = TRACES[trace]
    with pytest.raises(AssertionError) as failure:
        testing.check_restores(make(model), model, inputs)
    assert fact in str(failure.value)


@pytest.mark.parametrize("name", CHECKS)
def test_what_breaks_none_passes(name, llava, tmp_path):
    method = RightLearned() if name in ("identity", "learns") else Right()
    found = run(name, method, *llava, tmp_path)
    assert (found.name, found.status) == (name, "pass")
    assert found.detail


@pytest.mark.parametrize("name", ("restores", "decoding", "saves"))
def test_a_method_that_does_nothing_proves_nothing(name, llava, tmp_path):
    with pytest.raises(AssertionError, match="no more than rounding"):
        run(name, Right(1.0), *llava, tmp_path)


def test_all_run_in_one_call_and_all_that_fail_are_told(llava, tmp_path):
    broken = changed(RightLearned, initial=starts_at_one, record_provenance=lambda self, *_: None)()
    with testing.plugged(type(broken)), pytest.raises(AssertionError) as failure:
        testing.check(broken, *llava, tmp_path)
    first, *lines = str(failure.value).splitlines()
    assert first == "2 of 6 checks failed on LlavaForConditionalGeneration"
    assert [line.partition(":")[0] for line in lines] == ["identity", "saves"]
    with testing.plugged(type(broken)):
        found = testing.check(broken, *llava, tmp_path, skip=("identity", "saves"))
    assert [(one.name, one.status) for one in found] == [
        (name, "pass") for name in ("fires", "restores", "decoding", "learns")
    ]


def test_errors_of_the_engine_are_failures_too(llava, tmp_path):
    def interventions(self, model_map):
        return [steer.Intervention(steer.sites.resid_out([99]), steer.ops.Scale(0.5))]

    with pytest.raises(AssertionError, match="fires: .*99"):
        testing.check(changed(Right, interventions=interventions)(), *llava, tmp_path)


def test_what_the_model_itself_cannot_do_is_left_out_and_said(tmp_path):
    """BLIP's decoder overwrites the first slot and counts from it, so that padding changes what it says."""
    model, inputs = testing.tiny("blip")
    found = testing.check_decoding(Right(), model, inputs)
    assert found.status == "pass"
    assert "not tried: padded" in found.detail
    relative = applying(lambda x: torch.cat([2 * x[:, :1], x[:, 1:]], dim=1))()
    with pytest.raises(AssertionError, match="without a cache"):
        testing.check_decoding(relative, model, inputs)


def test_rows_of_a_model_that_writes_nothing_are_compared():
    model, inputs = testing.tiny("clip")
    assert "in a batch" in testing.check_decoding(Right(), model, inputs).detail
    with pytest.raises(AssertionError, match="in a batch"):
        testing.check_decoding(applying(lambda x: x + x.mean(0, keepdim=True))(), model, inputs)


def test_a_model_whose_generate_refuses_the_inputs_is_only_read(monkeypatch):
    model, inputs = testing.tiny("llava")

    def refuses(**inputs):
        raise TypeError("not these")

    monkeypatch.setattr(model, "generate", refuses)
    assert "alone, in a batch" in testing.check_decoding(Right(), model, inputs).detail


def test_a_decoder_of_pictures_alone_writes_with_a_cache_and_without():
    detail = testing.check_decoding(Right(), *testing.tiny("pix2struct")).detail
    assert detail.startswith("with a cache, without a cache: the same")


def test_a_model_that_neither_writes_nor_reads_words_can_be_run_in_one_way_only():
    """Its config names no token to begin with, so that `generate` refuses."""
    found = testing.check_decoding(Right(), *testing.tiny("vision-encoder-decoder"))
    assert found.status == "skip"
    assert "reads no words" in found.detail


def test_a_method_from_which_the_output_has_no_gradient_learns_nothing(llava):
    with pytest.raises(AssertionError, match="do not reach 'first': nothing depends on it, 'second'"):
        testing.check_learns(changed(RightLearned, interventions=lambda self, model_map: [])(), *llava)


def test_wrong_use_is_told(llava, tmp_path):
    model, inputs = llava
    with pytest.raises(UnknownNameError, match="'fire'.*'fires'"):
        testing.check(Right(), model, inputs, tmp_path, skip=("fire",))
    twice = {name: torch.cat([one, one]) for name, one in inputs.items()}
    with pytest.raises(SteerError, match=r"one prompt.*\(2, 24\)"):
        testing.check_decoding(Right(), model, twice)
    with pytest.raises(AssertionError, match="no method is registered.*plugged"):
        testing.check_saves(Right(), model, inputs, tmp_path)
    assert testing.check_learns(Right(), model, inputs).status == "skip"


def test_a_check_leaves_model_inputs_and_method_alone(llava, tmp_path):
    model, inputs = llava
    before = {name: one.clone() for name, one in inputs.items()}
    method = RightLearned()
    with testing.plugged(RightLearned), torch.no_grad():
        plain = model(**inputs).logits
        testing.check(method, model, inputs, tmp_path)
        assert torch.equal(model(**inputs).logits, plain)
    assert method.tensors == method.provenance == {}
    assert all(torch.equal(before[name], one) for name, one in inputs.items())
    assert all(parameter.grad is None for parameter in model.parameters())
