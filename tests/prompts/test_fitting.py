"""Whole fits: what they repeat, what they leave as it was, where they go on, and every part with every other."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch

import steer
from steer_prompts import _check, _fit
from tests.prompts.models import CLASSES, build, pictures
from tests.prompts.quick import EXAMPLES, OPTIONS, PICTURES, QUICK, bits, called, create, fitted, same

CLIP = build("clip")
MORE = [(picture, CLASSES[index % 3]) for index, picture in enumerate(pictures(6, seed=9))]
LEARNING = sorted(set(OPTIONS) - {"tip_adapter"})


class Cut(KeyboardInterrupt):
    """Somebody pressed a key."""


def cut_at(monkeypatch: Any, step: int) -> None:
    """Break a fit off when so many batches are done."""
    inner, count = _fit._Fitting.open_batch, itertools.count()

    def open_batch(self: Any, numbers: Any) -> Any:
        if next(count) == step:
            raise Cut
        return inner(self, numbers)

    monkeypatch.setattr(_fit._Fitting, "open_batch", open_batch)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_seed_repeats_to_the_bit(name):
    first, again = (fitted(*CLIP, name) for _ in range(2))
    assert same(first.tensors, again.tensors)
    assert torch.equal(first.scores(PICTURES), again.scores(PICTURES))
    assert all(value.dtype == torch.float32 for key, value in first.tensors.items() if key not in _check.NOT_LEARNED)
    assert not any(value.requires_grad for value in first.tensors.values())
    if name != "tip_adapter":
        other = create(name).fit(*CLIP, EXAMPLES, **QUICK, seed=1)
        assert not same(first.tensors, other.tensors)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_model_is_as_it_was(name):
    """In train mode, with dropout and weights that ask for gradients: all comes back, and nothing is random."""
    quiet, processor = CLIP
    model = copy.deepcopy(quiet).train().requires_grad_(True)
    model.vision_model.eval()
    model.logit_scale.requires_grad_(False)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [one.requires_grad for one in model.parameters()], [one.training for one in model.modules()]
    method = fitted(model, processor, name)
    scores = method.scores(PICTURES)
    assert flags == ([one.requires_grad for one in model.parameters()], [one.training for one in model.modules()])
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert all(one.grad is None for one in model.parameters())
    assert same(method.tensors, fitted(quiet, processor, name).tensors)
    truth = fitted(quiet, processor, name).scores(PICTURES)
    assert torch.equal(scores, truth)
    model.eval()
    ensemble = create("zero_shot", templates=["a {}.", "the {}."])
    assert torch.equal(ensemble.bind(model.train(), processor).scores(PICTURES), ensemble.bind(*CLIP).scores(PICTURES))


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("was_fitted", [False, True])
def test_a_fit_that_is_interrupted_leaves_all_as_it_was(name, was_fitted, monkeypatch):
    model, processor = copy.deepcopy(CLIP[0]), CLIP[1]
    method = create(name)
    if was_fitted:
        method.fit(*CLIP, EXAMPLES, **QUICK)
    before, tensors, provenance = method.bound() if was_fitted else None, bits(method), dict(method.provenance)
    scores = method.scores(PICTURES) if was_fitted else None
    state = copy.deepcopy(model.state_dict())
    cut_at(monkeypatch, 3)
    with pytest.raises(Cut):
        method.fit(model, processor, EXAMPLES, **QUICK, dev=EXAMPLES)
    assert same(method.tensors, tensors)
    assert method.provenance == provenance
    assert method._bound is before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    if was_fitted:
        assert torch.equal(method.scores(PICTURES), scores)
    else:
        assert method.fitted_classes == []
        with pytest.raises(steer.SteerError, match="not bound"):
            method.predict(PICTURES)


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("step", [1, 3])
def test_a_fit_that_was_cut_off_goes_on_to_the_bit(name, step, tmp_path, monkeypatch):
    options = {**QUICK, "checkpoint_every": 1, "augment": "crop"}
    whole = create(name).fit(*CLIP, EXAMPLES, **options)
    with monkeypatch.context() as patch:
        cut_at(patch, step)
        with pytest.raises(Cut):
            create(name).fit(*CLIP, EXAMPLES, **options, folder=tmp_path)
    done = []
    inner = _fit._Fitting.open_batch
    monkeypatch.setattr(_fit._Fitting, "open_batch", lambda self, numbers: done.append(1) or inner(self, numbers))
    resumed = create(name).fit(*CLIP, EXAMPLES, **options, folder=tmp_path)
    assert len(done) == 4 - step
    assert same(resumed.tensors, whole.tensors)
    for other, named in ({"augment": "none"}, "augment"), ({"seed": 3}, "seed"), ({"lr": 0.2}, "options"):
        with pytest.raises(steer.SteerError, match="another fit") as caught:
            create(name).fit(*CLIP, EXAMPLES, **{**options, **other}, folder=tmp_path)
        assert named in str(caught.value)


def test_sentences_are_part_of_a_fit_s_identity(tmp_path):
    given = {name: [f"the {name}.", f"a small {name}."] for name in CLASSES}
    create("coprompt").fit(*CLIP, EXAMPLES, **QUICK, sentences=given, folder=tmp_path)
    with pytest.raises(steer.SteerError, match="sentences"):
        create("coprompt").fit(*CLIP, EXAMPLES, **QUICK, folder=tmp_path)
    file = tmp_path / "sentences.json"
    file.write_text(json.dumps(given))
    create("coprompt").fit(*CLIP, EXAMPLES, **QUICK, sentences=file, folder=tmp_path)


@pytest.mark.parametrize("name", LEARNING)
def test_dev_keeps_the_best(name):
    """With steps so large that the loss goes up and down, the tensors are those of the lowest loss noted."""
    labels = torch.tensor([CLASSES.index(label) for _, label in MORE])
    method = create(name).fit(*CLIP, EXAMPLES, dev=MORE, **{**QUICK, "epochs": 5, "lr": 2.0, "warmup_lr": 2.0})
    noted = [entry["dev"] for entry in method.provenance["training"]["history"]]
    loss = torch.nn.functional.cross_entropy(method.scores([picture for picture, _ in MORE]), labels)
    assert float(loss) == pytest.approx(min(noted), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_models_in_half_precision(name, dtype):
    whole, processor = CLIP
    model = copy.deepcopy(whole).to(dtype)
    method = fitted(model, processor, name)
    assert all(value.dtype == torch.float32 for key, value in method.tensors.items() if key not in _check.NOT_LEARNED)
    scores = method.scores(PICTURES)
    assert scores.dtype == torch.float32
    near = copy.copy(method).bind(whole, processor).scores(PICTURES)
    assert (scores - near).abs().max() < (0.05 if dtype == torch.float16 else 0.3)
    assert (called(method, model, PICTURES).float() - near).abs().max() < (0.05 if dtype == torch.float16 else 0.4)


def test_prompts_need_no_example_of_a_class_and_a_cache_has_no_vote_for_it():
    for name in ("coop", "tip_adapter"):
        method = create(name).fit(*CLIP, EXAMPLES[:2], **QUICK)
        assert method.scores(PICTURES).shape == (8, 4)
    plain = create("zero_shot").bind(*CLIP).scores(PICTURES)
    votes = method.scores(PICTURES) - plain
    assert (votes[:, :2] > 0).all()
    assert votes[:, 2:].abs().max() < 1e-6


def test_a_cache_beside_learned_parts_is_filled_after_they_are_learned():
    """Otherwise every training picture would vote for itself while the others learn."""
    model, processor = build("clip")
    alone = {"image_adapter": 0.3, "context": 2, "vision_context": 1}
    options = {"epochs": 2, "batch_size": 4, "seed": 3, "progress": False}
    data = [(picture, CLASSES[i % 4]) for i, picture in enumerate(pictures(8))]
    plain = steer.create("coop", classes=CLASSES, **alone).fit(model, processor, data, **options)
    voting = steer.create("coop", classes=CLASSES, cache=2.0, **alone).fit(model, processor, data, **options)
    assert all(torch.equal(voting.tensors[name], value) for name, value in plain.tensors.items())
    seen = voting.bound()
    with steer.attach(model, plain, strict=False), torch.no_grad():
        features = torch.nn.functional.normalize(seen.image_features(seen.pixels([one for one, _ in data])), dim=-1)
    torch.testing.assert_close(voting.tensors["cache.keys"], features, rtol=0, atol=1e-6)
    others = pictures(3, seed=9)
    with steer.attach(model, plain, strict=False), torch.no_grad():
        query = torch.nn.functional.normalize(seen.image_features(seen.pixels(others)), dim=-1)
    votes = 2.0 * torch.exp(-5.5 * (1 - query @ features.T)) @ torch.eye(4)[torch.arange(8) % 4]
    torch.testing.assert_close(voting.scores(others), plain.scores(others) + votes, rtol=0, atol=1e-5)
