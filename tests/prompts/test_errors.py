"""What is refused: each message says what was asked, what there is, and how to go on; nothing is left half done."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steer
from steer.errors import InterventionError, MappingError, UnknownNameError
from tests.engine.helpers import tiny_llama
from tests.prompts.models import CLASSES, SLOTS, build
from tests.prompts.quick import EXAMPLES, PICTURES, QUICK, create, fitted

CLIP = build("clip")

# What makes no sense, and what its message names.
CONFIGURATIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"regulariser": "knowlege"}, ["knowlege", "did you mean 'knowledge'"]),
    ({"class_position": "back"}, ["back", "end, middle, front"]),
    ({"context": -1}, ["context", "-1"]),
    ({"context": 2.5}, ["context", "2.5"]),
    ({"context": True}, ["context", "True"]),
    ({"context": "4"}, ["context", "'4'"]),
    ({"text_depth": 0}, ["text_depth", "at least 1"]),
    ({"bottleneck": 0}, ["bottleneck", "at least 1"]),
    ({"image_adapter": 1.5}, ["image_adapter", "at most 1", "1.5"]),
    ({"text_adapter": -0.1}, ["text_adapter", "-0.1"]),
    ({"cache": float("nan")}, ["cache", "nan"]),
    ({"weight": float("inf")}, ["weight", "inf"]),
    ({"templates": []}, ["templates", "a photo of a {}."]),
    ({"templates": "a {}."}, ["templates", "'a {}.'"]),
    ({"templates": ["a {}.", "a photo"]}, ["one {}", "'a photo'"]),
    ({"context": 0, "init": "a photo"}, ["init", "context is 0"]),
    ({"context": 0, "class_position": "front"}, ["class_position", "context is 0"]),
    ({"context": 0, "class_specific": True}, ["class_specific", "context is 0"]),
    ({"context": 0, "conditional": True}, ["conditional", "context is 0"]),
    ({"context": 0, "coupled": True}, ["coupled", "context is 0"]),
    ({"context": 0, "text_depth": 2}, ["text_depth", "context is 0"]),
    ({"class_specific": True, "conditional": True}, ["class_specific", "conditional"]),
    ({"class_specific": True, "coupled": True}, ["class_specific", "coupled"]),
    ({"coupled": True, "vision_context": 3}, ["coupled", "vision_context"]),
    ({"coupled": True, "vision_depth": 2}, ["vision_depth=2", "text_depth=1"]),
    ({"vision_depth": 2}, ["vision_depth", "vision_context"]),
    ({"context": 0, "cache": 1.0, "regulariser": "consistency"}, ["consistency", "fitted by gradient"]),
    ({"context": 0, "vision_context": 2, "regulariser": "knowledge"}, ["knowledge", "texts"]),
    ({"classes": "cat"}, ["list of names", "'cat'"]),
    ({"classes": None}, ["list of names", "None"]),
    ({"classes": ["cat", " "]}, ["list of names", "' '"]),
    ({"classes": ["cat", "_"]}, ["list of names", "'_'"]),
    ({"classes": ["cat", 3]}, ["list of names", "3"]),
    ({"classes": ["cat", "dog", "cat"]}, ["'cat'", "more than once"]),
]


@pytest.mark.parametrize(("options", "said"), CONFIGURATIONS, ids=lambda one: str(one)[:40])
def test_settings_that_make_no_sense(options, said):
    with pytest.raises(steer.SteerError) as caught:
        steer.create("coop", **options)
    assert all(part in str(caught.value) for part in said), caught.value


# Arguments of `fit` for CoOp of the classes, where they are not as they should be.
FITS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"examples": []}, steer.SteerError, ["labelled pictures", "none"]),
    ({"examples": [*EXAMPLES, (PICTURES[0], "cta")]}, UnknownNameError, ["examples[8]", "'cta'", "did you mean 'cat'"]),
    ({"dev": [(PICTURES[0], "dgo")]}, UnknownNameError, ["dev[0]", "'dgo'", "did you mean 'dog'"]),
    ({"examples": [PICTURES[0]]}, steer.SteerError, ["examples[0]", "(picture, class name)"]),
    ({"examples": [(PICTURES[0], 3)]}, steer.SteerError, ["examples[0]", "(picture, class name)"]),
    ({"examples": [(None, "cat")]}, steer.SteerError, ["examples[0]"]),
    ({"dev": [steer.Example("", "cat")]}, steer.SteerError, ["dev[0]", "Example"]),
    ({"augment": "crops"}, UnknownNameError, ["augment", "did you mean 'crop'"]),
    ({"epoch": 3}, UnknownNameError, ["option of fit", "did you mean 'epochs'"]),
    ({"class_batch": 0}, steer.SteerError, ["class_batch", "at least 1"]),
    ({"max_steps": 3}, InterventionError, ["epochs", "max_steps"]),
]


@pytest.mark.parametrize(("given", "kind", "said"), FITS, ids=lambda one: str(one)[:40])
def test_fits_that_cannot_be(given, kind, said):
    method = create("coop")
    steps: list[int] = []
    handle = CLIP[0].register_forward_hook(lambda *some: steps.append(1))
    examples = given.get("examples", EXAMPLES)
    try:
        with pytest.raises(kind) as caught:
            method.fit(*CLIP, examples, **{**QUICK, **{k: v for k, v in given.items() if k != "examples"}})
    finally:
        handle.remove()
    assert all(part in str(caught.value) for part in said), caught.value
    # told at once, and not after an epoch; TwoStream itself runs the model three times
    assert len(steps) <= 3
    assert (method.tensors, method.fitted_classes) == ({}, [])


def test_methods_that_cannot_be_on_this_model():
    for options, said in (
        ({"text_depth": 4}, ["text_depth=4", "3 layers"]),
        ({"vision_context": 2, "vision_depth": 9}, ["vision_depth=9", "3 layers"]),
        ({"init": "a photo of"}, ["context=4", "3 tokens"]),
        ({"classes": ["cat", "dog " * SLOTS]}, ["dog", "reads at most"]),
    ):
        with pytest.raises(steer.SteerError) as caught:
            create("coop", **{"context": 4, **options}).fit(*CLIP, EXAMPLES[:1], **QUICK)
        assert all(part in str(caught.value) for part in said), caught.value
    with pytest.raises(MappingError, match="pictures against texts"):
        create("coop").fit(tiny_llama(), CLIP[1], EXAMPLES, **QUICK)
    with pytest.raises(steer.SteerError, match="tokenizer and an image processor"):
        create("coop").bind(CLIP[0], CLIP[1].tokenizer)
    with pytest.raises(steer.SteerError, match="zero_shot.*learns nothing"):
        create("zero_shot").fit(*CLIP, EXAMPLES, **QUICK)
    with pytest.raises(steer.SteerError, match="needs classes"):
        steer.create("zero_shot").bind(*CLIP)


@pytest.mark.parametrize("name", ["coop", "vpt", "tip_adapter"])
def test_what_was_not_fitted(name):
    with pytest.raises(steer.SteerError, match="not bound"):
        create(name).predict(PICTURES)
    with pytest.raises(steer.SteerError, match="fitted first"):
        create(name).bind(*CLIP).predict(PICTURES)
    with pytest.raises(steer.SteerError, match="fitted first"):
        steer.attach(CLIP[0], create(name))


def test_an_ensemble_is_made_by_a_model(tmp_path):
    fitted(*CLIP, "clip_adapter", templates=["a {}.", "the {}."]).save_pretrained(tmp_path)
    with pytest.raises(steer.SteerError, match=r"2 templates.*bind"):
        steer.attach(CLIP[0], steer.load(tmp_path))
    steer.attach(CLIP[0], steer.load(tmp_path).bind(*CLIP))


def test_a_picture_by_itself_is_no_list(tmp_path):
    method = fitted(*CLIP, "coop")
    tensor = torch.zeros(3, 16, 16)
    for one in (PICTURES[0], str(tmp_path), tmp_path, b"bytes", tensor, tensor.numpy(), {"pixel_values": tensor}, 3):
        for use in (method.predict, method.scores, method.inputs):
            with pytest.raises(steer.SteerError, match="as a list"):
                use(one)
    for size in (0, -1, 2.0, None):
        with pytest.raises(steer.SteerError, match="batch_size"):
            method.predict(PICTURES, batch_size=size)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(steer.SteerError, match=r"x\.png"):
        method.predict([tmp_path / "x.png"])


@pytest.mark.parametrize("classes", [["cat", "cat"], ["dog " * SLOTS], "cat", [""], []])
def test_classes_that_cannot_be_leave_those_there_were(classes):
    method = fitted(*CLIP, "coop")
    before = method.scores(PICTURES)
    with pytest.raises(steer.SteerError):
        method.set_classes(classes)
    assert method.classes == CLASSES
    assert torch.equal(method.scores(PICTURES), before)


def test_vectors_of_a_class_are_no_other_class_s():
    method = create("coop", class_specific=True, classes=["x"]).set_classes(CLASSES)
    method.fit(*CLIP, EXAMPLES, **QUICK)
    before = method.scores(PICTURES)
    for classes in (CLASSES[::-1], CLASSES[:2], [*CLASSES, "airplane"], [*CLASSES[:3], "airplane"]):
        with pytest.raises(steer.SteerError, match="for each of 4 classes"):
            method.set_classes(classes)
    assert torch.equal(method.set_classes(list(CLASSES)).scores(PICTURES), before)


def test_texts_too_short_for_the_vectors_are_an_error_and_texts_laid_out_alike_are_right():
    model, processor = CLIP
    method = fitted(model, processor, "coop", context=8)
    pixels = processor.image_processor(PICTURES)
    short = processor.tokenizer(["a cat"], return_tensors="pt")
    alike = processor.tokenizer(["a " * 8 + "big dog."], return_tensors="pt")
    with steer.attach(model, method):
        with pytest.raises(InterventionError, match="other texts"):
            model(input_ids=short["input_ids"], **pixels)
        made = model(input_ids=alike["input_ids"], **pixels).logits_per_image
    torch.testing.assert_close(made, method.set_classes(["big dog"]).scores(PICTURES), rtol=0, atol=2e-5)
    uneven = fitted(model, processor, "coop", context=4, class_position="middle").set_classes(["cat", "red apple"])
    with steer.attach(model, uneven, strict=False), pytest.raises(InterventionError, match="batch of 1"):
        model(input_ids=alike["input_ids"], **pixels)


def test_sentences(tmp_path):
    given = {name: ["the {}."] for name in CLASSES[:3]}
    for missing in (given, {**given, CLASSES[3]: []}):
        with pytest.raises(steer.SteerError, match=r"sentences has none for 'red apple' \(1 classes"):
            create("coprompt").fit(*CLIP, EXAMPLES, **QUICK, sentences=missing)
    broken = tmp_path / "x.json"
    for text, said in (("{", r"x\.json"), ("[1]", "holds a list"), (None, "neither a mapping nor")):
        if text is not None:
            broken.write_text(text)
        with pytest.raises(steer.SteerError, match=said):
            create("coprompt").fit(*CLIP, EXAMPLES, **QUICK, sentences=broken if text is not None else tmp_path / "no")
    with pytest.raises(steer.SteerError, match=r"sentences\['dog'\] must be a list"):
        given = {name: ["x"] for name in CLASSES} | {"dog": "the dog"}
        create("coprompt").fit(*CLIP, EXAMPLES, **QUICK, sentences=given)
