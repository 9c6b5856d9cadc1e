"""PASTA against its own definition: weights multiplied and renormalised after the softmax, in fp64, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
from transformers.modeling_utils import AttentionInterface

import steer
from steer import positions, regions
from steer.errors import InterventionError, MappingError, UnknownNameError
from tests.engine.families import FAMILIES, IMAGE
from tests.engine.helpers import tiny_llama, tokens
from tests.vectors.subjects import subject

from .laws import check_decoding, check_neutral, check_saved

HEADS = {0: [1, 6], 2: [5]}
"""Two query heads that share no key-value head, and one alone; eight query heads share two key-value heads."""
PROMPT, PADS, ALPHA = 9, (2, 0), 0.01


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompt() -> dict[str, torch.Tensor]:
    """Two rows, the first with two slots of padding on the left."""
    ids, mask = tokens(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.long)
    ids[0, : PADS[0]], mask[0, : PADS[0]] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def span() -> torch.Tensor:
    """Slots that are highlighted: another piece in each row."""
    inside = torch.zeros(2, PROMPT, dtype=torch.bool)
    inside[0, 4:6] = inside[1, 1] = inside[1, 7] = True
    return inside


@contextmanager
def by_hand(model: Any, inside: torch.Tensor, alpha: float, heads: dict[int, list[int]]) -> Iterator[None]:
    """The model attending as the paper says: softmax, times alpha outside the span, divided by the sum, in fp64."""
    length = inside.shape[1]

    def attend(
        module: nn.Module, query: Any, key: Any, value: Any, mask: Any, scaling: float = 1.0, **more: Any
    ) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = (t.double().repeat_interleave(groups, dim=1) for t in (key, value))
        scores = query.double() @ key.transpose(-1, -2) * scaling
        total = scores.shape[-1]
        seen = torch.ones(scores.shape[-2:]).tril(total - scores.shape[-2]).bool() if mask is None else mask
        p = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
        outside = torch.nn.functional.pad(~inside, (0, total - length))[:, None, None]
        for head in heads.get(module.layer_idx, []):
            lowered = torch.where(outside[:, 0], alpha * p[:, head], p[:, head])
            p[:, head] = (lowered / lowered.sum(-1, keepdim=True)).nan_to_num()
        return (p @ value).to(query.dtype).transpose(1, 2), None

    before = model.config._attn_implementation
    AttentionInterface._global_mapping["pasta-by-hand"] = attend
    MASKS._global_mapping["pasta-by-hand"] = MASKS["sdpa"]
    model.config._attn_implementation = "pasta-by-hand"
    try:
        yield
    finally:
        model.config._attn_implementation = before
        del AttentionInterface._global_mapping["pasta-by-hand"], MASKS._global_mapping["pasta-by-hand"]


def logits(model: Any, inputs: dict[str, torch.Tensor], *methods: steer.Method) -> torch.Tensor:
    with torch.no_grad(), steer.attach(model, *methods):
        return model(**inputs).logits


def pasta(**changes: Any) -> steer.Method:
    return steer.create("pasta", **{"heads": HEADS, "alpha": ALPHA, **changes})


@pytest.mark.parametrize("alpha", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_logits_are_those_of_weights_multiplied_and_renormalised(implementation: str, alpha: float) -> None:
    model, inputs = tiny_llama(implementation=implementation), prompt()
    plain = logits(model, inputs)
    got = logits(model, inputs, pasta(alpha=alpha).on(positions.mask(span())))
    with torch.no_grad(), by_hand(model, span(), alpha, HEADS):
        truth = model(**inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got[real], truth[real], rtol=1e-4, atol=1e-5 * float(truth.abs().max()))
    assert (plain - truth)[real].abs().max() > 0.05


def test_weights_of_one_head_and_of_no_other() -> None:
    model, inputs, found = tiny_llama(implementation="eager"), prompt(), []
    for methods in ([], [pasta(heads=((1, 6),)).on(positions.mask(span()))]):
        with torch.no_grad(), steer.attach(model, *methods):
            found.append(model(**inputs, output_attentions=True).attentions[1].double())
    before, after = found
    others = [head for head in range(8) if head != 6]
    assert torch.equal(before[:, others], after[:, others])
    lowered = torch.where(span()[:, None], before[:, 6], ALPHA * before[:, 6])
    truth = lowered / lowered.sum(-1, keepdim=True)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(after[:, 6][real], truth[real], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_is_generated_is_what_the_definition_writes(use_cache: bool) -> None:
    model, inputs, steps = tiny_llama(), prompt(), 5
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad(), by_hand(model, span(), ALPHA, HEADS):
        for _ in range(steps):
            ids = torch.cat([ids, model(input_ids=ids, attention_mask=mask).logits[:, -1:].argmax(-1)], dim=1)
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    options = {"max_new_tokens": steps, "do_sample": False, "use_cache": use_cache}
    plain = model.generate(**inputs, **options)
    with steer.attach(model, pasta().on(positions.mask(span()))):
        got = model.generate(**inputs, **options)
    assert torch.equal(got, ids)
    assert not torch.equal(got, plain)


def test_beams_of_a_batch_are_those_of_its_rows_alone() -> None:
    model, inputs = tiny_llama(), prompt()
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    with steer.attach(model, pasta().on(positions.mask(span()))):
        together = model.generate(**inputs, **options)
    for row, pad in enumerate(PADS):
        with steer.attach(model, pasta().on(positions.mask(span()[row, pad:]))):
            alone = model.generate(**{k: v[row : row + 1, pad:] for k, v in inputs.items()}, **options)
        assert torch.equal(together[2 * row : 2 * row + 2, pad:], alone)


def test_a_row_without_a_span_is_left_as_it_is() -> None:
    model, inputs, inside = tiny_llama(), prompt(), span()
    inside[1] = False
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = model.generate(**inputs, **options)
    with steer.attach(model, pasta().on(positions.mask(inside))):
        got = model.generate(**inputs, **options)
    for before, after in zip(plain.logits, got.logits, strict=True):
        torch.testing.assert_close(after[1], before[1], rtol=1e-5, atol=1e-5)
    assert (got.logits[0][0] - plain.logits[0][0]).abs().max() > 0.05


def test_half_precision() -> None:
    inputs, method = prompt(), pasta().on(positions.mask(span()))
    whole, half = (tiny_llama().to(dtype) for dtype in (torch.float32, torch.bfloat16))
    plain, truth = logits(whole, inputs)[:, -1], logits(whole, inputs, method)[:, -1]
    got = logits(half, inputs, method)[:, -1].float()
    assert (got - truth).norm() < 0.1 * truth.norm()
    assert (got - truth).norm() < 0.5 * (plain - truth).norm()


def test_layers_stand_for_all_of_their_heads() -> None:
    model, inputs, at = tiny_llama(), prompt(), positions.mask(span())
    pairs = tuple((layer, head) for layer in (0, 2) for head in range(8))
    truth = logits(model, inputs, pasta(heads=pairs).on(at))
    assert torch.equal(logits(model, inputs, pasta(heads="all", layers=(0, -1)).on(at)), truth)
    assert not torch.equal(logits(model, inputs, pasta(heads="all").on(at)), truth)


def test_of_several_spans_the_union_counts() -> None:
    model, inputs, inside = tiny_llama(), prompt(), span()
    first, second = inside.clone(), inside.clone()
    first[:, 5:], second[:, :5] = False, False
    both = pasta().on(positions.mask(first), positions.mask(second))
    assert torch.equal(logits(model, inputs, both), logits(model, inputs, pasta().on(positions.mask(inside))))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_all_pictures_are_the_span_of_their_tokens(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt()
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    heads, found = {0: [0, 3], 1: 2}, []
    for method in (
        pasta(heads=heads).on(positions.mask(inputs["input_ids"] == IMAGE)),
        pasta(heads=heads, span="images"),
    ):
        with steer.attach(model, method):
            out = model.generate(**inputs, suppress_tokens=[95, 96, 97, 98], **options)
        found.append(torch.stack(out.logits))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny-vlm", "qwen2_5_vl"])
def test_pictures_hold_in_every_way_of_decoding(name: str) -> None:
    check_decoding(subject(name), pasta(heads="all", span="images"))


def test_from_words_and_a_box_to_what_a_model_looks_at() -> None:
    model, processor = steer.zoo.load("tiny-vlm")
    example = steer.zoo.examples("plain:colour", n=1)[0]
    inputs = steer.prompts.encode(model, processor, [steer.prompts.Prompt(example)]).inputs
    picture = example.images[0]
    width, height = picture.size
    box = regions.image_region(processor, inputs, picture, (0, 0, width * 2 / 3, height / 3))
    word = regions.text_span(processor, inputs, "colour")
    slots = inputs["input_ids"] == processor.image_token_id
    # nine tokens a picture, in three rows
    assert box.rows[slots].tolist() == [True, True] + 7 * [False]
    assert processor.tokenizer.decode(inputs["input_ids"][word.rows]) == "colour"
    model.set_attn_implementation("eager")
    shares = []
    for methods in ([], [pasta(heads={1: [0]}).on(box, word)]):
        with torch.no_grad(), steer.attach(model, *methods):
            weights = model(**inputs, output_attentions=True).attentions[1][0, 0, -1].double()
        shares.append(float(weights[(box.rows | word.rows)[0]].sum()))
    assert shares[1] == pytest.approx(shares[0] / (shares[0] + ALPHA * (1 - shares[0])), rel=1e-4)
    assert shares[1] > shares[0]


def test_alpha_of_one_changes_no_bit() -> None:
    check_neutral(subject("tiny-vlm"), pasta(heads="all", alpha=1.0, span="images"))


def test_saved_without_its_span(tmp_path: Any) -> None:
    check_saved(subject("tiny-vlm"), pasta(heads={0: [1]}, span="images"), tmp_path / "images")
    given = pasta(layers=(0, 2), heads="all")
    given.on(positions.mask(span())).save_pretrained(tmp_path / "given")
    loaded = steer.load(tmp_path / "given", tiny_llama())
    assert loaded == given
    at = positions.mask(span())
    assert torch.equal(logits(tiny_llama(), prompt(), loaded.on(at)), logits(tiny_llama(), prompt(), given.on(at)))
    with pytest.raises(InterventionError, match=r"method.on\(span\)"):
        logits(tiny_llama(), prompt(), loaded)


def test_errors() -> None:
    for alpha in (0, -1.0, float("nan"), float("inf"), "much"):
        with pytest.raises(InterventionError, match="alpha must be a number above 0"):
            pasta(alpha=alpha)
    with pytest.raises(InterventionError, match="heads already says which layers"):
        pasta(layers=(1,))
    with pytest.raises(InterventionError, match="layers are"):
        pasta(heads="all", layers="first")
    with pytest.raises(UnknownNameError, match="'image'.*'images'"):
        pasta(span="image")
    for spans in ((), (positions.image(),), (torch.ones(2, 3),)):
        with pytest.raises(InterventionError, match="positions.mask"):
            pasta().on(*spans)
    with pytest.raises(InterventionError, match=r"\[2, 9\], \[9\]"):
        pasta().on(positions.mask(span()), positions.mask(span()[0]))
    with pytest.raises(InterventionError, match=r"no token is in the span, of \[2, 9\]"):
        pasta().on(positions.mask(torch.zeros_like(span())))
    with pytest.raises(UnknownNameError, match="3 layers"):
        logits(tiny_llama(), prompt(), pasta(heads=((7, 0),)).on(positions.mask(span())))
    with pytest.raises(UnknownNameError, match="layer"):
        logits(tiny_llama(), prompt(), pasta(heads="all", layers=(7,)).on(positions.mask(span())))
    family = FAMILIES["florence2"]
    with pytest.raises(MappingError, match="encoder of its own"), steer.attach(family.model(), pasta(span="images")):
        pass
