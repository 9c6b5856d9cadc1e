"""Every two-stream architecture: what is found, what is learned, and rows of both towers against plain hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steer
from steer.errors import MappingError

from .cases import Case, close, fitted, hooked, made, seen_alone, words
from .families import FAMILIES, SLOTS
from .models import CLASSES, build, pictures

# Each preset with depths and sizes that fit a tower of three layers.
TEXT_ONLY: dict[str, dict[str, Any]] = {
    "coop": {"context": 3},
    "cocoop": {},
    "kgcoop": {},
    "prograd": {"context": 3},
    "clip_adapter": {},
    "tip_adapter": {},
}
BOTH: dict[str, dict[str, Any]] = {
    "maple": {"text_depth": 3, "vision_depth": 3},
    "coprompt": {"text_depth": 2, "vision_depth": 2},
    "vpt": {"vision_context": 2, "vision_depth": 3},
    "ivlp": {"text_depth": 2, "vision_depth": 3},
    "promptsrc": {"text_depth": 3, "vision_depth": 2},
}
SEEING = [name for name, family in FAMILIES.items() if family.vision]
CASES = [(family, preset) for family in FAMILIES for preset in [*TEXT_ONLY, *(BOTH if FAMILIES[family].vision else ())]]


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest) -> Case:
    return made(request.param)


def test_streams_and_the_rule_of_the_scores_are_the_models_own(case: Case) -> None:
    streams, stream = case.stream.streams, case.stream
    assert streams.tokens == case.family.table
    assert (streams.scores, streams.options) == (case.family.scores, case.family.call)
    assert steer.inspect(case.model).to_dict()["streams"]["tokens"] == case.family.table
    assert (stream.scale, stream.bias) == pytest.approx(case.family.rule(case.model), rel=1e-5)
    assert stream.slots == SLOTS
    # SigLIP pools the last position. AIMv2 masks what comes later only where something is padded.
    assert stream.pads_matter == (case.name in ("siglip", "siglip2", "aimv2"))


def test_halves_make_the_scores_of_the_models_own_call(case: Case) -> None:
    texts, stream = words(case), case.stream
    with torch.no_grad():
        images = stream.image_features(stream.pixels(case.images))
        named = stream.text_features(stream.tokens([f"a photo of a {name}." for name in CLASSES]))
    wanted = case.own(texts, case.images)
    assert images.shape == (6, stream.streams.image.width)
    close(stream.scores(images, named), wanted)
    assert wanted.std() > 1e-2
    zero = steer.create("zero_shot", classes=CLASSES).bind(case.model, case.processor)
    close(zero.scores(case.images), wanted)


@pytest.mark.parametrize(("name", "preset"), CASES, ids=["-".join(one) for one in CASES])
def test_a_fit_lowers_the_loss_and_the_models_own_call_gives_the_same_scores(name: str, preset: str) -> None:
    case = made(name)
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    plain = case.own(words(case), case.images)
    method = steer.create(preset, classes=CLASSES, **(TEXT_ONLY | BOTH)[preset])
    gentle = {"lr": 0.02, "epochs": 4, "batch_size": 6, "schedule": "linear", "weight_decay": 0.0, "augment": "none"}
    method.fit(case.model, case.processor, case.examples, progress=False, **gentle)
    if preset != "tip_adapter":
        losses = [
            sum(value for key, value in entry.items() if key != "step")
            for entry in method.provenance["training"]["history"]
        ]
        assert min(losses[1:]) < losses[0]
    scores = method.scores(case.images)
    assert (scores - plain).abs().max() > 1e-4
    with steer.attach(case.model, method), torch.no_grad():
        own = getattr(case.model(**method.inputs(case.images)), case.family.scores)
    close(own, scores)
    assert torch.equal(case.own(words(case), case.images), plain)
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())


def test_words_as_context_are_the_hand_written_prompt(case: Case) -> None:
    """A context that starts from all of its words and has not moved changes nothing."""
    method = steer.create("coop", classes=CLASSES, context=4, init="a photo of a")
    still = {"lr": 1e-30, "epochs": 1, "schedule": "linear", "weight_decay": 0.0}
    method.fit(case.model, case.processor, case.examples, progress=False, **still)
    wanted = case.own(words(case), case.images)
    close(method.scores(case.images), wanted)
    method.tensors["context"][1, ::2] += 1.0
    assert (method.bind(case.model, case.processor).scores(case.images) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("name", SEEING)
def test_vision_rows_are_those_that_plain_hooks_write_for_each_picture_alone(name: str) -> None:
    case = made(name)
    method = fitted(case, "vpt", vision_context=2, vision_depth=2)
    with torch.no_grad():
        wanted = torch.cat([seen_alone(case, image, method.tensors) for image in case.images])
        plain = case.stream.image_features(case.stream.pixels(case.images))
        with steer.attach(case.model, method, strict=False):
            got = case.stream.image_features(case.stream.pixels(case.images))
    close(got, wanted)
    assert (wanted - plain).abs().max() > 1e-2 * plain.abs().max()


def test_text_rows_are_those_that_plain_hooks_write(case: Case) -> None:
    method = fitted(case, "coop", context=3, text_depth=3)
    inputs = method.prompts_of_classes().inputs
    slots = method.tensors["slots"]
    layers, tensors = case.model.get_submodule(case.family.text), method.tensors

    def write(name: str) -> Any:
        def hook(x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            for row, places in enumerate(slots.tolist()):
                for place, vector in zip(places, tensors[name], strict=True):
                    x[row, place] = vector
            return x

        return hook

    with torch.no_grad():
        with hooked(case.model.get_submodule(case.family.table), write("context")):
            with hooked(layers[0], write("text.1")), hooked(layers[1], write("text.2")):
                wanted = case.stream.text_features(inputs)
        with steer.attach(case.model, method, strict=False):
            got = case.stream.text_features(inputs)
        plain = case.stream.text_features(inputs)
    close(got, wanted)
    assert (wanted - plain).abs().max() > 1e-2 * plain.abs().max()


@pytest.mark.parametrize("preset", list(BOTH))
@pytest.mark.parametrize(
    ("name", "reason"), [("align", "layers without attention"), ("groupvit", "stages")], ids=["align", "groupvit"]
)
def test_towers_without_rows_say_why(name: str, reason: str, preset: str) -> None:
    case = made(name)
    method = steer.create(preset, classes=CLASSES, **{**BOTH[preset], "vision_depth": 1})
    with pytest.raises(MappingError, match=reason) as caught:
        method.fit(case.model, case.processor, case.examples, progress=False, epochs=1)
    assert "vision tower" in str(caught.value)
    assert type(case.model).__name__ in str(caught.value)


@pytest.mark.parametrize("name", ["flava", "blip_2"])
def test_other_models_are_refused(name: str) -> None:
    model, processor = build(name)
    assert steer.inspect(model).streams is None
    with pytest.raises(MappingError, match=type(model).__name__) as caught:
        steer.create("coop", classes=CLASSES).fit(model, processor, [(pictures(1)[0], "cat")], progress=False)
    assert "pictures against texts" in str(caught.value)


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_siglip_reads_every_slot_and_its_head_sees_the_patches_alone(name: str) -> None:
    case = made(name)
    method = fitted(case, "ivlp", text_depth=2, vision_depth=2)
    inputs = method.inputs(case.images)
    assert inputs["input_ids"].shape == (4, SLOTS)
    assert set(inputs) & {"attention_mask"} == set()
    filled = inputs["input_ids"][:, -1]
    assert filled.tolist() == [case.processor.tokenizer.pad_token_id] * 4
    seen: list[int] = []
    head = case.model.vision_model.head
    handle = head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    with steer.attach(case.model, method), torch.no_grad():
        scores = case.model(**inputs).logits_per_image
    handle.remove()
    assert seen == [inputs["pixel_values"].shape[1] if case.family.packed else 16]
    assert scores.shape == (6, 4)
    # what is scored is probabilities after a sigmoid: the bias is in the scores
    with torch.no_grad():
        case.model.logit_bias.add_(1.0)
    try:
        moved = steer.TwoStream(case.model, case.processor)
        assert moved.bias == pytest.approx(-2.0, abs=1e-5)
        close(method.bind(case.model, case.processor).scores(case.images), scores + 1)
    finally:
        with torch.no_grad():
            case.model.logit_bias.sub_(1.0)


@pytest.mark.parametrize("name", ["clip", "siglip2", "vision_text_dual_encoder", "tipsv2"])
def test_tokenizers_that_pad_on_the_left_make_no_difference(name: str) -> None:
    case = made(name)
    model, processor = build(name, side="left")
    scores = []
    for one in (case.processor, processor):
        method = steer.create("coop", classes=CLASSES, context=2, text_depth=2)
        method.fit(model, one, case.examples, progress=False, lr=0.05, epochs=2, schedule="linear")
        scores.append(method.scores(case.images))
    assert torch.equal(*scores)
    zero = [steer.create("zero_shot", classes=CLASSES).bind(model, one) for one in (case.processor, processor)]
    assert torch.equal(*[one.scores(case.images) for one in zero])
