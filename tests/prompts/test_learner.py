"""What a user does with a prompt learner: predict, other classes, the model's own call, several methods at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import steer
from tests.prompts.models import CLASSES, build, pictures
from tests.prompts.quick import EXAMPLES, OPTIONS, PICTURES, QUICK, called, create, fitted

MODELS = {name: build(name) for name in ("clip", "siglip")}
CLIP = MODELS["clip"]
CLOSE = {"rtol": 0.0, "atol": 2e-5}


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_predict_is_the_model_s_own_call(model, name):
    """One to three pictures and one to four classes, halves apart and together."""
    method = fitted(*MODELS[model], name)
    for count, classes in ((1, CLASSES), (3, CLASSES[1:3]), (2, ["big dog"]), (3, ["a", *CLASSES])):
        method.set_classes(classes)
        scores = called(method, MODELS[model][0], PICTURES[:count])
        assert scores.shape == (count, len(classes))
        torch.testing.assert_close(method.scores(PICTURES[:count]), scores, **CLOSE)
    assert (scores - create("zero_shot", classes=classes).bind(*MODELS[model]).scores(PICTURES[:3])).abs().max() > 1e-2


@pytest.mark.parametrize("templates", [["a photo of a {}."], ["a photo of a {}.", "the big {}."]])
def test_zero_shot_is_the_model(templates):
    model, processor = CLIP
    method = create("zero_shot", templates=templates).bind(model, processor)
    with torch.no_grad():
        image = model.get_image_features(**processor.image_processor(PICTURES)).pooler_output
        texts = 0.0
        for template in templates:
            ids = processor.tokenizer([template.format(name) for name in CLASSES], padding=True, return_tensors="pt")
            made = model.get_text_features(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
            texts = texts + made.pooler_output / made.pooler_output.norm(dim=-1, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(image[:, None], texts[None], dim=-1)
    torch.testing.assert_close(method.scores(PICTURES), model.logit_scale.exp() * cosine, rtol=0, atol=1e-4)
    torch.testing.assert_close(called(method, model, PICTURES), method.scores(PICTURES), **CLOSE)


def test_predictions():
    method = fitted(*CLIP, "coop")
    made = method.predict(PICTURES)
    torch.testing.assert_close(made.probabilities, method.scores(PICTURES).softmax(-1))
    assert made.labels == [CLASSES[i] for i in method.scores(PICTURES).argmax(-1)]
    assert [row[0] for row in made.top(1)] == [
        (label, float(made.probabilities[i].max())) for i, label in enumerate(made.labels)
    ]
    assert len(made.top(99)[0]) == len(CLASSES)
    assert made.to_dict()["labels"] == made.labels
    none = method.predict([])
    assert (len(none), none.labels, none.top()) == (0, [], [])
    assert none.probabilities.shape == (0, len(CLASSES))


def test_pictures_of_every_kind(tmp_path):
    method = fitted(*CLIP, "maple")
    one = PICTURES[0]
    path = tmp_path / "one.png"
    one.save(path)
    truth = method.scores([one])
    assert torch.equal(method.scores([path]), truth)
    assert torch.equal(method.scores((one.convert("RGBA"),)), truth)
    assert torch.equal(method.scores(iter([path.read_bytes()])), truth)
    assert torch.equal(method.scores([one.convert("L")]), method.scores([one.convert("L").convert("RGB")]))
    torch.testing.assert_close(method.scores(PICTURES, batch_size=3), method.scores(PICTURES), **CLOSE)


def test_classes_are_those_of_the_examples():
    method = create("coop", classes=[]).fit(*CLIP, EXAMPLES[:3], **QUICK)
    assert method.classes == method.fitted_classes == sorted(CLASSES[:3])
    assert method.predict(PICTURES[:1]).labels[0] in CLASSES[:3]


def test_other_classes_keep_what_was_learned():
    method = fitted(*CLIP, "kgcoop")
    context, before = method.tensors["context"], method.scores(PICTURES)
    method.set_classes(CLASSES[::-1])
    assert method.tensors["context"] is context
    torch.testing.assert_close(method.scores(PICTURES), before.flip(1), **CLOSE)
    method.set_classes(["airplane", *CLASSES])
    torch.testing.assert_close(method.scores(PICTURES)[:, 1:], before, **CLOSE)
    assert method.fitted_classes == CLASSES
    method.classes = CLASSES[:2]
    torch.testing.assert_close(method.scores(PICTURES), before[:, :2], **CLOSE)


def test_votes_of_the_cache_go_to_the_classes_that_it_knows():
    method, plain = fitted(*CLIP, "tip_adapter"), create("zero_shot").bind(*CLIP)
    votes = method.scores(PICTURES) - plain.scores(PICTURES)
    assert (votes > 0).all()
    names = [CLASSES[2], "airplane", CLASSES[0]]
    moved = method.set_classes(names).scores(PICTURES) - plain.set_classes(names).scores(PICTURES)
    torch.testing.assert_close(moved, torch.stack([votes[:, 2], torch.zeros(8), votes[:, 0]], 1), rtol=0, atol=1e-5)


def test_two_methods_at_once_are_both_by_hand():
    """CoOp's texts against adapted pictures, in one session, in two, and with either's `scores` inside the other's."""
    model, processor = CLIP
    coop, adapter = fitted(model, processor, "coop"), fitted(model, processor, "clip_adapter", text_adapter=0.3)
    coop.predict(PICTURES)
    stream = steer.TwoStream(model, processor)
    with torch.no_grad():
        with steer.attach(model, coop, strict=False):
            texts = stream.text_features(coop.prompts_of_classes().inputs)
        bent = []
        for side, x in (("image", stream.image_features(stream.pixels(PICTURES))), ("text", texts)):
            down, up = (adapter.tensors[f"{side}_adapter.{i}.weight"] for i in (0, 1))
            ratio = getattr(adapter, f"{side}_adapter")
            bent.append(ratio * torch.relu(torch.relu(x @ down.T) @ up.T) + (1 - ratio) * x)
        truth = stream.scores(*bent)
    torch.testing.assert_close(called(coop, model, PICTURES, adapter), truth, **CLOSE)
    with torch.no_grad(), steer.attach(model, adapter):
        torch.testing.assert_close(called(coop, model, PICTURES), truth, **CLOSE)
        torch.testing.assert_close(coop.scores(PICTURES), truth, **CLOSE)
        torch.testing.assert_close(coop.scores(PICTURES), truth, **CLOSE)
    assert (coop.scores(PICTURES) - truth).abs().max() > 1e-3
    torch.testing.assert_close(coop.scores(PICTURES), called(coop, model, PICTURES), **CLOSE)


@pytest.mark.parametrize("name", ["coop", "clip_adapter", "vpt"])
def test_predict_and_fit_inside_a_session_of_the_same_method_are_refused(name):
    model, processor = CLIP
    method = fitted(model, processor, name)
    before = method.scores(PICTURES)
    for use in (lambda: method.predict(PICTURES), lambda: method.fit(model, processor, EXAMPLES, **QUICK)):
        with steer.attach(model, method, strict=False), pytest.raises(steer.SteerError, match="attached"):
            use()
    assert torch.equal(method.scores(PICTURES), before)
    other = fitted(model, processor, name)
    with steer.attach(model, other, strict=False):
        method.predict(PICTURES)


@pytest.mark.parametrize("name", ["maple", "cocoop", "tip_adapter"])
def test_an_error_inside_a_session_leaves_nothing_behind(name):
    model, processor = CLIP
    method = fitted(model, processor, name)
    before, inputs = method.scores(PICTURES), method.inputs(PICTURES)
    plain = model(**inputs).logits_per_image
    layer = model.text_model.encoder.layers[1]

    def fail(*given: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), steer.attach(model, method):
        handle = layer.register_forward_hook(fail)
        try:
            model(**inputs)
        finally:
            handle.remove()
    assert torch.equal(model(**inputs).logits_per_image, plain)
    assert torch.equal(method.scores(PICTURES), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())


def test_a_context_that_depends_on_the_picture_needs_one():
    model, processor = CLIP
    method = fitted(model, processor, "cocoop")
    texts = {k: v for k, v in method.inputs(PICTURES[:1]).items() if k in ("input_ids", "attention_mask")}
    with steer.attach(model, method, strict=False), pytest.raises(steer.SteerError, match="depends on the picture"):
        model.get_text_features(**texts)


def test_scores_are_those_that_the_loss_was_taken_of():
    """What `fit` notes for `dev` is the cross-entropy of `scores` on it."""
    for name in sorted(set(OPTIONS) - {"tip_adapter"}):
        method = create(name).fit(*CLIP, EXAMPLES, dev=EXAMPLES, **{**QUICK, "epochs": 1})
        labels = torch.tensor([CLASSES.index(label) for _, label in EXAMPLES])
        noted = method.provenance["training"]["history"][-1]["dev"]
        assert float(cross_entropy(method.scores(pictures(8)), labels)) == pytest.approx(noted, abs=1e-5), name


@pytest.mark.parametrize("specific", [False, True])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_what_was_learned_is_explained(model, specific):
    """Before anything is learned the nearest words are those that the vectors start from."""
    still = {**QUICK, "lr": 1e-30, "warmup_lr": 0.0}
    method = create("kgcoop", class_specific=specific, text_depth=2).fit(*MODELS[model], EXAMPLES, **still)
    made = method.explain()
    assert json.loads(json.dumps(made.to_dict()))["parameters"] == made.parameters == method.number_of_parameters()
    vectors = [row for row in made.rows if row.name.startswith("context")]
    words = ["a", "photo", "of", "a"] * (4 if specific else 1)
    assert [row.nearest[0] for row in vectors] == [(word, 0.0) for word in words]
    first = 1 if model == "clip" else 0
    assert [int(row.slot) for row in vectors[:4]] == [first, first + 1, first + 2, first + 3]
    owners = [f"context of {name!r}" for name in CLASSES] if specific else ["context"]
    assert [row.name for row in vectors[::4]] == owners
    assert "photo 0" in str(made)
