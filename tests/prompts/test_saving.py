"""What comes back from a file: alone, bound, on another model, damaged; and every part with every other."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import steer
from steer.errors import FileFormatError, FingerprintError, UnknownNameError
from steer_prompts import _check, _fit
from tests.prompts.families import TEXT, VISION
from tests.prompts.models import CLASSES, build, pictures, random_weights
from tests.prompts.quick import EXAMPLES, OPTIONS, PICTURES, QUICK, called, create, fitted, same

MODELS = {name: build(name) for name in ("clip", "siglip")}
CLIP = MODELS["clip"]
MORE = [(picture, CLASSES[index % 3]) for index, picture in enumerate(pictures(6, seed=9))]
JSON, TENSORS = "steer_method.json", "steer_method.safetensors"


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_method_comes_back_to_the_bit(name, tmp_path):
    method = fitted(*CLIP, name)
    method.set_classes([*CLASSES[:2], "airplane"])
    scores = method.scores(PICTURES)
    method.save_pretrained(tmp_path)
    loaded = steer.load(tmp_path)
    assert type(loaded) is type(method)
    assert loaded == method
    assert (loaded.classes, loaded.fitted_classes) == ([*CLASSES[:2], "airplane"], CLASSES)
    assert same(loaded.tensors, method.tensors)
    assert loaded.provenance == json.loads(json.dumps(method.provenance))
    assert {str(value.dtype) for key, value in loaded.tensors.items() if key in _check.NOT_LEARNED} <= {"torch.int64"}
    with pytest.raises(steer.SteerError, match="bind"):
        loaded.predict(PICTURES)
    assert torch.equal(loaded.bind(*CLIP).scores(PICTURES), scores)


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - {"cocoop"}))
def test_a_loaded_method_is_attached_without_a_tokenizer(name, tmp_path):
    model, method = CLIP[0], fitted(*CLIP, name)
    method.save_pretrained(tmp_path)
    inputs, truth = method.inputs(PICTURES), called(method, model, PICTURES)
    with torch.no_grad(), steer.attach(model, steer.load(tmp_path)):
        assert torch.equal(model(**inputs).logits_per_image, truth)


def test_what_needs_a_processor_says_so(tmp_path):
    model, method = CLIP[0], fitted(*CLIP, "cocoop")
    method.save_pretrained(tmp_path)
    with steer.attach(model, steer.load(tmp_path), strict=False), pytest.raises(steer.SteerError, match="bind"):
        model(**method.inputs(PICTURES))


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_model_of_other_widths_is_refused(name, tmp_path):
    fitted(*CLIP, name).save_pretrained(tmp_path)
    wide = {"text_config": {**TEXT, "hidden_size": 48, "projection_dim": 20}, "vision_config": VISION}
    model = random_weights(hf.CLIPModel(hf.CLIPConfig(**wide, projection_dim=20)))
    loaded = steer.load(tmp_path)
    for use in (lambda: loaded.bind(model, CLIP[1]), lambda: steer.attach(model, loaded)):
        with pytest.raises(FingerprintError, match="width 32, here 48"):
            use()
    with pytest.raises(FingerprintError):
        steer.load(tmp_path).bind(*MODELS["siglip"])
    assert loaded._bound is None


def test_names_in_any_script(tmp_path):
    names = ["naïve café", "日本", 'a "b"', "{}", "c\\d"]
    method = create("coop", classes=names).fit(*CLIP, [(PICTURES[0], name) for name in names], **QUICK)
    method.save_pretrained(tmp_path)
    assert steer.load(tmp_path).bind(*CLIP).classes == names


def test_a_bound_method_is_bound_to_another_model():
    """Weights of another seed: the same shape, other texts."""
    method, other = fitted(*CLIP, "coop"), random_weights(copy.deepcopy(CLIP[0]), seed=5)
    before = method.scores(PICTURES)
    there = method.bind(other, CLIP[1]).scores(PICTURES)
    assert (there - before).abs().max() > 1e-2
    torch.testing.assert_close(called(method, other, PICTURES), there, rtol=0, atol=2e-5)
    assert torch.equal(method.bind(*CLIP).scores(PICTURES), before)


def test_an_ensemble_is_of_the_method_s_texts_and_of_no_others():
    model, processor = CLIP
    method = create("zero_shot", templates=["a {}.", "the {}."]).bind(model, processor)
    others = processor.tokenizer(["big dog", "x", "good bad cat", "a red apple."], padding=True, return_tensors="pt")
    given = {**others, **processor.image_processor(PICTURES)}
    plain = model(**given).logits_per_image
    with steer.attach(model, method):
        made = model(**given).logits_per_image
    assert torch.equal(made[:, :3], plain[:, :3])
    torch.testing.assert_close(made[:, 3], method.scores(PICTURES)[:, 3], rtol=0, atol=2e-5)


def test_a_method_that_reads_pictures_itself_reads_them_with_its_model():
    method, other = fitted(*CLIP, "cocoop"), copy.deepcopy(CLIP[0])
    inputs = method.inputs(PICTURES)
    with steer.attach(other, method, strict=False), pytest.raises(steer.SteerError, match="bound to"):
        other(**inputs)


@pytest.mark.parametrize("damage", ["cut", "json", "no tensors", "no json", "field", "value", "config", "swapped"])
def test_damaged_folders(damage, tmp_path):
    folder = tmp_path / "one"
    fitted(*CLIP, "maple").save_pretrained(folder)
    record = json.loads((folder / JSON).read_text())
    if damage == "cut":
        (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-10])
    elif damage == "json":
        (folder / JSON).write_text((folder / JSON).read_text()[:-10])
    elif damage == "swapped":
        save_file({key: value + 1 for key, value in load_file(folder / TENSORS).items()}, folder / TENSORS)
    elif damage.startswith("no "):
        (folder / (JSON if damage == "no json" else TENSORS)).unlink()
    else:
        new = {"field": {"colour": 1}, "value": {"context": "2"}, "config": {"coupled": True, "context": 0}}[damage]
        record["config"] |= new
        _sign(record)
        (folder / JSON).write_text(json.dumps(record))
    with pytest.raises(steer.SteerError) as caught:
        steer.load(folder)
    assert isinstance(caught.value, FileFormatError | UnknownNameError) or "context" in str(caught.value)


def _sign(record: dict[str, Any]) -> None:
    """The digest that a file of this content has."""
    from steer.files import _digest

    record.pop("sha256")
    record["sha256"] = _digest(record)


@pytest.mark.parametrize("change", [{"text_depth": 3}, {"image_adapter": 0.2}, {"vision_context": 2}])
def test_fields_that_no_longer_fit_the_tensors(change):
    method = fitted(*CLIP, "coop")
    for key, value in change.items():
        setattr(method, key, value)
    with pytest.raises(steer.SteerError, match="fitted with other settings"):
        method.predict(PICTURES)


flags = st.fixed_dictionaries(
    {
        "context": st.sampled_from([0, 2]),
        "init": st.sampled_from(["", "a photo of a"]),
        "class_position": st.sampled_from(["end", "end", "middle", "front"]),
        "class_specific": st.booleans(),
        "conditional": st.booleans(),
        "text_depth": st.sampled_from([1, 3]),
        "vision_context": st.sampled_from([0, 2]),
        "vision_depth": st.sampled_from([1, 2]),
        "coupled": st.booleans(),
        "image_adapter": st.sampled_from([0.0, 0.3]),
        "text_adapter": st.sampled_from([0.0, 0.3]),
        "cache": st.sampled_from([0.0, 0.5]),
        "regulariser": st.sampled_from(_check.REGULARISERS),
        "templates": st.sampled_from([["a photo of a {}."], ["a {}.", "the big {}."]]),
    }
)


@settings(max_examples=60)
@given(flags, st.sampled_from(["clip", "siglip"]))
def test_every_part_goes_with_every_other(tmp_path_factory, options, name):
    """Whatever is not refused is fitted, scores alike in halves and in the model's call, and comes back from a file."""
    try:
        method = steer.create("coop", classes=CLASSES, **options)
    except steer.SteerError as error:
        assert any(part in str(error) for part in options), error  # noqa: PT017 - it is allowed not to raise
        assume(False)
    model, processor = MODELS[name]
    if not method.learns:
        with pytest.raises(steer.SteerError, match="learns nothing"):
            method.fit(model, processor, EXAMPLES, **QUICK)
        return
    method.fit(model, processor, EXAMPLES[:4], dev=MORE[:2], **{**QUICK, "epochs": 1})
    assert sorted(key for key in method.tensors if key not in _fit.NOT_FITTED) == sorted(_check.learned(method))
    scores = method.scores(PICTURES[:3])
    torch.testing.assert_close(called(method, model, PICTURES[:3]), scores, rtol=1e-5, atol=5e-5)
    assert method.explain().parameters == method.number_of_parameters()
    folder = tmp_path_factory.mktemp("saved")
    method.save_pretrained(folder)
    loaded = steer.load(folder).bind(model, processor)
    assert same(loaded.tensors, method.tensors)
    assert torch.equal(loaded.scores(PICTURES[:3]), scores)
