"""The reference against the authors' logits, transformers' CLIP, and the authors' way of training as it is timed."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import tensor
from torch.nn import functional as F

from tests.prompts.reference import (
    clip,
    clip_adapter,
    cocoop,
    coop,
    coprompt,
    golden,
    ivlp,
    kgcoop,
    maple,
    prograd,
    promptsrc,
    step,
    tip_adapter,
    vpt,
    zero_shot,
)

# Logits are cosines times 100: in fp32 each side is up to 1.4e-5 off, the authors' own numbers included.
ROUNDED = 5e-5
SYSTEMS = {"coop": coop, "cocoop": cocoop, "maple": maple, "coprompt": coprompt, "promptsrc": promptsrc}
LABELS = tensor([0, 2, 3])


def double(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}


@pytest.fixture(scope="module")
def subject() -> clip.Clip:
    return clip.Clip(golden.model().state_dict(), **golden.HEADS)


@pytest.fixture(scope="module")
def exact(subject) -> clip.Clip:
    """In fp64: what differs from the authors' logits then is their rounding alone, which no other machine changes."""
    return dataclasses.replace(subject, weights=double(subject.weights))


def logits(subject: clip.Clip, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the reference says of one golden file in fp64, and what the authors' code said."""
    file = double(golden.read(name))
    system, _, kind = name.partition("_")
    given = (file["ids"], file["images"], golden.learned(file))
    where = (kind.partition("_")[0],) if kind else ()
    return SYSTEMS[system].logits(subject, *given, *where), file["logits"]


@pytest.mark.parametrize("name", golden.NAMES)
def test_logits_are_the_authors(exact, name):
    with torch.no_grad():
        ours, theirs = logits(exact, name)
        wrong, _ = logits(dataclasses.replace(exact, act=clip.gelu), name)
    assert (ours - theirs).abs().max() < 2e-5
    assert (wrong - theirs).abs().max() > 1e-2


def test_files_tell_the_systems_apart(subject):
    """What is left out or mixed up moves the logits by far more than the bar."""
    file = golden.read("maple")
    learned = golden.learned(file)
    uncoupled = {**learned, "prompt_learner.proj.weight": learned["prompt_learner.proj.weight"] * 0}
    deep = [f"prompt_learner.compound_prompts_text.{i}" for i in (0, 1)]
    swapped = {**learned, deep[0]: learned[deep[1]], deep[1]: learned[deep[0]]}
    with torch.no_grad():
        for wrong in (uncoupled, swapped):
            assert (maple.logits(subject, file["ids"], file["images"], wrong) - file["logits"]).abs().max() > 1e-2
        file = golden.read("coprompt")
        bare = maple.logits(subject, file["ids"], file["images"], golden.learned(file))
        assert (bare - file["logits"]).abs().max() > 1e-2
        file = golden.read("coop_middle_csc")
        for position in ("end", "front"):
            other = coop.logits(subject, file["ids"], file["images"], golden.learned(file), position)
            assert (other - file["logits"]).abs().max() > 1e-2


def test_plain_towers_are_transformers(subject):
    file = golden.read("cocoop")
    ids, images = file["ids"], file["images"]
    with torch.no_grad():
        wanted = golden.model()(input_ids=ids, pixel_values=images).logits_per_image
        assert (zero_shot.logits(subject, [ids], images) - wanted).abs().max() < ROUNDED


def test_authors_way_is_the_reference(subject):
    path = Path(__file__).parents[2] / "docs" / "experiments" / "prompts" / "authors_way.py"
    spec = importlib.util.spec_from_file_location("experiments_prompts_authors_way", path)
    authors_way = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(authors_way)
    model = golden.model()

    file = golden.read("coop_end_shared")
    given = (file["ids"], file["images"])
    assert (authors_way.predict_coop(model, *given, file["ctx"], batch=2) - file["logits"]).abs().max() < ROUNDED
    context, losses = authors_way.fit_coop(model, *given, LABELS, file["ctx"], steps=2, lr=0.1)
    learned, momenta = {"ctx": file["ctx"]}, None
    for value in losses:
        wanted, gradient = step.gradients(lambda x: coop.loss(subject, *given, LABELS, x), learned)
        learned, momenta = step.sgd(learned, gradient, momenta, lr=0.1)
        assert value == pytest.approx(float(wanted), abs=ROUNDED)
    assert (context - file["ctx"]).abs().max() > 1e-3
    torch.testing.assert_close(context, learned["ctx"], atol=1e-5, rtol=1e-4)

    file = golden.read("cocoop")
    meta = authors_way.meta_net(model)
    names = {f"{at}.{part}": f"linear{i}.{part}" for at, i in ((0, 1), (2, 2)) for part in ("weight", "bias")}
    meta.load_state_dict({ours: file[f"meta_net.{theirs}"] for ours, theirs in names.items()})
    given = (file["ids"], file["images"])
    assert (authors_way.predict_cocoop(model, *given, file["ctx"], meta) - file["logits"]).abs().max() < ROUNDED
    context, losses = authors_way.fit_cocoop(model, *given, LABELS, file["ctx"], meta, steps=1, lr=0.1, batch=2)
    before = golden.learned(file)
    wanted, gradient = step.gradients(lambda x: cocoop.loss(subject, given[0], given[1][:2], LABELS[:2], x), before)
    after, _ = step.sgd(before, gradient, None, lr=0.1)
    assert losses == pytest.approx([float(wanted)], abs=ROUNDED)
    for ours, theirs in names.items():
        torch.testing.assert_close(meta.state_dict()[ours], after[f"meta_net.{theirs}"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(context, after["ctx"], atol=1e-5, rtol=1e-4)
    assert all(weight.requires_grad for weight in model.parameters())


def test_losses_are_the_cross_entropy_of_the_logits_and_their_terms(subject):
    """Without what is added to it, a loss is the cross-entropy of the golden logits; with it, larger by that."""
    for name in ("coop_end_csc", "cocoop", "maple", "coprompt", "promptsrc"):
        file = golden.read(name)
        given = (file["ids"], file["images"], LABELS, golden.learned(file))
        entropy = -file["logits"].log_softmax(-1)[range(3), LABELS].mean()
        with torch.no_grad():
            texts, frozen = clip.encode_text(subject, file["ids"]), clip.encode_image(subject, file["images"])
            if name == "coprompt":
                value = coprompt.loss(subject, *given, texts, frozen, weight=0.0)
                held = coprompt.consistency(*coprompt.features(subject, *given[:2], given[3]), frozen, texts)
                assert coprompt.loss(subject, *given, texts, frozen, weight=2.0) == pytest.approx(
                    float(value + 2 * held), rel=1e-5
                )
            elif name == "promptsrc":
                value = ivlp.loss(subject, *given)
                plain = clip.similarity(subject, frozen, texts)
                pictures, prompted = ivlp.features(subject, *given[:2], given[3])
                held = promptsrc.regulariser(pictures, prompted, frozen, texts, file["logits"], plain)
                assert promptsrc.loss(subject, *given, texts) == pytest.approx(float(value + held), rel=1e-5)
            else:
                value = SYSTEMS[name.partition("_")[0]].loss(subject, *given)
        assert value == pytest.approx(float(entropy), abs=ROUNDED)


def test_losses_of_coop_with_regularisers(subject):
    """KgCoOp's is larger by the penalty; ProGrad at weight 0 goes where CoOp goes, else never against the teacher."""
    file = golden.read("coop_end_shared")
    given = (file["ids"], file["images"], LABELS)
    learned = golden.learned(file)
    with torch.no_grad():
        written = clip.encode_text(subject, file["ids"])
        teacher = clip.similarity(subject, clip.encode_image(subject, file["images"]), written)
        held = kgcoop.penalty(coop.text_features(subject, file["ids"], learned), written)
        value = kgcoop.loss(subject, *given, learned, written) - coop.loss(subject, *given, learned)
    assert held > 0.01
    assert value == pytest.approx(float(8 * held), rel=1e-4)
    for labels, against in ((LABELS, False), (tensor([3, 3, 3]), True)):
        given = (file["ids"], file["images"], labels)
        _, plain = step.gradients(lambda x, given=given: coop.loss(subject, *given, x), learned)
        _, general = step.gradients(lambda x, given=given: prograd.losses(subject, *given, x, teacher)[1], learned)
        gone = prograd.gradients(subject, *given, learned, teacher)
        before, after = (
            F.cosine_similarity(g["ctx"].flatten(), general["ctx"].flatten(), dim=0) for g in (plain, gone)
        )
        assert (before < -0.1) == against
        assert after == pytest.approx(0 if against else float(before), abs=1e-5)
    same = prograd.gradients(subject, *given, learned, teacher, weight=0.0)
    torch.testing.assert_close(same["ctx"], plain["ctx"])


def test_vision_prompts_alone_and_adapters_alone(subject):
    """Frozen texts: VPT is IVLP with the words of the ids left as they are; a ratio of 0 is zero-shot; keys learn."""
    file = golden.read("promptsrc")
    ids, images = file["ids"], file["images"]
    learned = golden.learned(file)
    seen = {name: t for name, t in learned.items() if "v" in name}
    words = clip.embed(subject, ids)[0, 1:5]
    with torch.no_grad():
        texts = clip.encode_text(subject, ids)
        both = ivlp.loss(subject, ids, images, LABELS, {**seen, "ctx": words})
        assert vpt.loss(subject, texts, images, LABELS, seen) == pytest.approx(float(both), rel=1e-6)
        plain = zero_shot.logits(subject, [ids], images)
        net = {"fc.0.weight": torch.ones(128, 512), "fc.2.weight": torch.ones(512, 128)}
        assert clip_adapter.loss(subject, texts, images, LABELS, net, 0.0) == pytest.approx(
            float(F.cross_entropy(plain, LABELS)), rel=1e-5
        )
        keys, values = tip_adapter.cache(subject, images, LABELS, 4)
    torch.testing.assert_close(values, torch.eye(4)[LABELS])
    _, gradient = step.gradients(
        lambda x: tip_adapter.loss(subject, texts, images, LABELS, x["keys"], values), {"keys": keys}
    )
    assert gradient["keys"].abs().max() > 0
