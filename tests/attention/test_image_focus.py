"""A constant on image tokens' scores, against the closed form on weights that eager attention hands out."""

from __future__ import annotations

import pytest
import torch

import steer
from steer.errors import InterventionError, MappingError, UnknownNameError
from tests.engine.families import FAMILIES, IMAGE
from tests.vectors.subjects import subject

from .laws import batch_of, check_decoding, check_neutral, check_saved

NAMES = ("llava", "qwen2_5_vl")
BETAS = {0: 1.5, 3: -2.0}
"""By query head; a key-value head is shared by 0 and 1, and by 2 and 3."""


def left_padded(name: str) -> dict[str, torch.Tensor]:
    """Two prompts with a picture each, of which the first is one word shorter."""
    family = FAMILIES[name]
    rows = [family.prompt(words, seed) for words, seed in ((4, 0), (5, 1))]
    first = rows[0]
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in first:
            first[key] = torch.nn.functional.pad(first[key], (1, 0))
    return {key: torch.cat([first[key], rows[1][key]]) for key in first}


def attentions(model, inputs, *methods):
    with torch.no_grad(), steer.attach(model, *methods):
        out = model(**inputs, output_attentions=True)
    return [one.double() for one in out.attentions]


@pytest.mark.parametrize("where", ["answer", "all"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_the_closed_form(name, layer, where):
    """What comes into the layer is untouched, so that its weights before say exactly what they must be after."""
    model, inputs = FAMILIES[name].model("eager"), left_padded(name)
    method = steer.create(
        "image_focus", heads=tuple((layer, h) for h in BETAS), beta=tuple(BETAS.values()), where=where
    )
    before, after = attentions(model, inputs)[layer], attentions(model, inputs, method)[layer]
    image = (inputs["input_ids"] == IMAGE)[:, None, None, :]
    truth = before.clone()
    chosen = slice(-1, None) if where == "answer" else slice(None)
    for head, beta in BETAS.items():
        row = before[:, head : head + 1, chosen]
        raised = torch.where(image, row * torch.tensor(beta).double().exp(), row)
        truth[:, head : head + 1, chosen] = raised / raised.sum(-1, keepdim=True)
    real = inputs["attention_mask"].bool()[:, None, :, None].expand_as(before)
    torch.testing.assert_close(after[real], truth[real], rtol=1e-5, atol=1e-6)
    share = (before * image).sum(-1)[:, 0, -1]
    odds = share * torch.tensor(1.5).double().exp()
    torch.testing.assert_close((after * image).sum(-1)[:, 0, -1], odds / (1 - share + odds), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("where", ["answer", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_fused_attention_gives_what_eager_does(name, where):
    method = steer.create("image_focus", heads={0: [0, 3], 1: 2}, beta=2.0, where=where)
    inputs, found = left_padded(name), []
    for implementation in ("eager", "sdpa"):
        model = FAMILIES[name].model(implementation)
        with torch.no_grad(), steer.attach(model, method):
            found.append(model(**inputs).logits[:, 1:])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5 * float(found[0].abs().max()))


@pytest.mark.parametrize("name", ["tiny-vlm", "qwen2_5_vl"])
def test_it_holds_in_every_way_of_decoding(name):
    check_decoding(subject(name), steer.create("image_focus", beta=6.0))


def test_half_precision():
    model, inputs = FAMILIES["llava"].model(), left_padded("llava")
    method = steer.create("image_focus", beta=1.0)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        given = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
        with torch.no_grad(), steer.attach(model.to(dtype), method):
            found.append(model(**given).logits[:, -1].float())
    assert (found[0] - found[1]).norm() < 0.1 * found[0].norm()


def test_zero_changes_no_bit_and_no_picture_changes_nothing():
    one = subject("tiny-vlm")
    check_neutral(one, steer.create("image_focus", beta=0.0))
    check_neutral(one, steer.create("image_focus", heads=((0, 1), (1, 2)), beta=(0.0, 0.0), where="all"))
    model = FAMILIES["llava"].model()
    words = {"input_ids": torch.tensor([[5, 9, 11, 40]])}
    with torch.no_grad():
        plain = model(**words).logits
        with steer.attach(model, steer.create("image_focus", beta=3.0)):
            torch.testing.assert_close(model(**words).logits, plain, rtol=1e-4, atol=1e-5)


def test_the_strength_that_answers_best_is_chosen_and_saved(tmp_path):
    """A model is asked for the answers that it gives under one strength: that one must win."""
    one = subject("tiny-vlm")
    for beta in (-1.0, 2.0):
        wanted = steer.create("image_focus", beta=beta)
        queries = [*one.examples, *steer.zoo.examples("colour", "dev", n=24)]
        written = wanted.answer(one.model, one.processor, queries)
        asked = [steer.Example(q.question, w, q.images) for q, w in zip(queries, written, strict=True) if w]
        method = steer.create("image_focus", beta=None)
        method.fit(one.model, one.processor, asked, progress=False)
        accuracy = method.tensors["accuracy"]
        place = (-1.0, 0.0, 0.5, 1.0, 2.0).index(beta)
        assert float(accuracy[place]) == 1.0
        assert float(accuracy[(-1.0, 0.0, 0.5, 1.0, 2.0).index(float(method.tensors["beta"]))]) == 1.0
        check_saved(one, method, tmp_path / str(beta))
        direct = steer.create("image_focus", beta=float(method.tensors["beta"]))
        with torch.no_grad():
            logits = []
            for either in (method, direct):
                with steer.attach(one.model, either, strict=False):
                    logits.append(one.model(**batch_of(one).inputs).logits)
        assert torch.equal(*logits)


def test_dev_decides_alone_where_it_is_given():
    one = subject("tiny-vlm")
    fit = {"progress": False, "seed": 3}
    first = steer.create("image_focus", beta=None).fit(
        one.model, one.processor, one.examples[:2], dev=one.examples, **fit
    )
    second = steer.create("image_focus", beta=None).fit(one.model, one.processor, one.examples, **fit)
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
    assert first.provenance == second.provenance


def test_errors():
    one, text = subject("tiny-vlm"), subject("llama")
    with pytest.raises(UnknownNameError, match="'answer'"):
        steer.create("image_focus", where="answr")
    with pytest.raises(InterventionError, match="inf"):
        steer.create("image_focus", beta=float("inf"))
    with pytest.raises(steer.SteerError, match="needs no fitting"):
        steer.create("image_focus").fit(one.model, one.processor, one.examples)
    with pytest.raises(steer.SteerError, match="must be fitted first"):
        steer.attach(one.model, steer.create("image_focus", beta=None))
    with pytest.raises(steer.SteerError, match="has no answer"):
        steer.create("image_focus", beta=None).fit(one.model, one.processor, [steer.Example("what ?")])
    with pytest.raises(MappingError, match="image"), steer.attach(text.model, steer.create("image_focus")):
        text.model(torch.tensor([[5, 6, 7]]))
