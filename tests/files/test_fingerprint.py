"""Loading onto a model that does not fit says what differs."""

from __future__ import annotations

import pytest
import torch

import steer
from steer.errors import FileFormatError, FingerprintError

from .toy import Toy, ToyPlugin, fitted, toy_map

DIFFERENCES = {
    "width": (toy_map(width=16), ["width 8", "16"]),
    "heads": (toy_map(heads=4), ["layer 0", "2, 2, 4", "4, 4, 2"]),
    "layers": (toy_map(layers=5), ["3 layers", "5"]),
    "type": (toy_map(model_type="other"), ["'toy'", "'other'"]),
    "tower more": (toy_map(towers=("text", "vision")), ["'vision'", "new"]),
    "tower fewer": (toy_map(towers=()), ["'text'", "missing"]),
    "two things": (toy_map(width=16, layers=2), ["width 8", "3 layers"]),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_model_that_does_not_fit_is_refused_with_every_difference(tmp_path, plugged, name):
    plugged(ToyPlugin())
    fitted().save_pretrained(tmp_path)
    model_map, facts = DIFFERENCES[name]
    with pytest.raises(FingerprintError) as caught:
        steer.load(tmp_path, model_map)
    for fact in facts:
        assert fact in str(caught.value)


def test_a_model_of_the_same_shape_is_accepted(tmp_path, plugged):
    plugged(ToyPlugin())
    fitted().save_pretrained(tmp_path)
    assert steer.load(tmp_path, toy_map()) == fitted()


def test_a_method_that_was_never_fitted_fits_any_model():
    Toy().check_fits(toy_map(width=16))


@pytest.mark.parametrize("damage", [7, {}, {"towers": 3}, {"towers": {"text": 3}}, {"towers": {"text": {"layers": 1}}}])
def test_a_fingerprint_of_nonsense_is_refused(damage):
    toy = fitted()
    toy.provenance["fingerprint"] = damage
    with pytest.raises(FingerprintError):
        toy.check_fits(toy_map())


def test_attach_refuses_a_method_made_for_another_model():
    model, _ = steer.zoo.load("tiny-vlm")
    with pytest.raises(FingerprintError, match="width"):
        steer.attach(model, fitted())


@pytest.mark.parametrize("tensors", [{}, {"vectors": torch.zeros(2, 5, 5)}, {"vectors": torch.zeros(2)}])
def test_tensors_that_make_no_interventions_on_the_model_are_refused_at_load(tmp_path, plugged, tensors):
    plugged(ToyPlugin())
    model, _ = steer.zoo.load("tiny-vlm")
    toy = Toy(layers=(0, 1))
    toy.tensors = tensors
    toy.save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="toy"):
        steer.load(tmp_path, model)
