"""Two readings of the same words in step: against the same two readings made one after the other without a cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import steer
from steer import contrast, ops, positions, sites
from steer.errors import InterventionError, MappingError, NeverFiredError
from steer.prompt_state import PromptState

from .families import FAMILIES, IMAGE, whole
from .helpers import randn, tiny_llama, tokens

NEW = 5


def darker(pixels: torch.Tensor) -> torch.Tensor:
    return pixels * 0.3 - 1


def apart(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return 2 * first - second


def darkened(combine: Callable[..., torch.Tensor] = apart) -> steer.Intervention:
    return steer.Intervention(sites.call(), ops.Contrast(contrast.with_pictures(darker), combine))


def blind(combine: Callable[..., torch.Tensor] = apart) -> steer.Intervention:
    return steer.Intervention(sites.call(), ops.Contrast(contrast.without_images, combine, images=True, hides=True))


def without_pictures(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One prompt with its image tokens taken out of the text."""
    words = inputs["input_ids"][inputs["input_ids"] != IMAGE][None]
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


def written(model: nn.Module, last: Callable[[torch.Tensor], torch.Tensor], prompt: torch.Tensor) -> torch.Tensor:
    """Greedy by hand: `last` gives the next token's logits for a whole sequence."""
    sequence = prompt
    for _ in range(NEW):
        sequence = torch.cat([sequence, last(sequence).argmax(-1)], dim=1)
    return sequence


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_5", "mllama"])
def test_another_picture_in_step_with_the_own_one(name: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt()
    dark = {**inputs, "pixel_values": darker(inputs["pixel_values"])}

    def last(sequence: torch.Tensor) -> torch.Tensor:
        given = model(**whole(family, inputs, sequence)).logits[:, -1:]
        return apart(given, model(**whole(family, dark, sequence)).logits[:, -1:])

    wanted = written(model, last, inputs["input_ids"])
    plain = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    with steer.attach(model, darkened()):
        got = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        logits = model(**inputs).logits
    assert torch.equal(got.sequences, wanted)
    scores = torch.stack([last(wanted[:, : wanted.shape[1] - NEW + i])[:, 0] for i in range(NEW)], 1)
    torch.testing.assert_close(torch.stack(got.logits, 1), scores, atol=1e-3, rtol=1e-3)
    assert (scores - model(**whole(family, inputs, wanted)).logits[:, -NEW - 1 : -1]).abs().max() > 0.1
    torch.testing.assert_close(logits, apart(model(**inputs).logits, model(**dark).logits), atol=1e-4, rtol=1e-4)
    assert torch.equal(model.generate(**inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None), plain)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_hidden_pictures_are_a_prompt_without_them(name: str, implementation: str) -> None:
    family = FAMILIES[name]
    model, inputs = family.model(implementation), family.prompt()
    bare = without_pictures(inputs)
    with steer.attach(model, blind(lambda first, second: second)):
        got = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    answer = got.sequences[:, -NEW:]
    sequence = torch.cat([bare["input_ids"], answer], dim=1)
    wanted = model(input_ids=sequence).logits[:, -NEW - 1 : -1]
    torch.testing.assert_close(torch.stack(got.logits, 1), wanted, atol=2e-4, rtol=1e-3)


def batch_of(short: dict[str, torch.Tensor], long: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two prompts, the first padded on the left."""
    more = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    padded = {
        name: torch.nn.functional.pad(t, (more, 0)) if t.ndim == 2 and name != "pixel_values" else t
        for name, t in short.items()
    }
    return {name: torch.cat([padded[name], long[name]]) for name in long}


@pytest.mark.parametrize("change", [darkened, blind])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 2}], ids=["greedy", "beams", "guesses"]
)
def test_a_padded_batch_is_answered_as_each_prompt_alone(change: Any, options: dict[str, Any]) -> None:
    family = FAMILIES["llava"]
    model = family.model()
    short, long = family.prompt(words=4, seed=1), family.prompt(words=8, seed=2)
    given = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    batch = batch_of(short, long)
    prompts = [short, long]
    with steer.attach(model, change()):
        alone = [model.generate(**one, **given) for one in prompts]
        if "prompt_lookup_num_tokens" in options:  # transformers guesses for one row only
            plain = [model.generate(**one, **{**given, "prompt_lookup_num_tokens": None}) for one in prompts]
            assert all(torch.equal(a, b) for a, b in zip(alone, plain, strict=True))
            return
        together = model.generate(**batch, **given)
    for row, one, single in zip(together, prompts, alone, strict=True):
        assert torch.equal(row[-NEW:], single[0, one["input_ids"].shape[1] :])


def test_beams_are_those_of_a_search_by_hand() -> None:
    """The other stream's cache follows the beams: without that, scores belong to other words."""
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt(seed=3)
    dark = {**inputs, "pixel_values": darker(inputs["pixel_values"])}
    length = inputs["input_ids"].shape[1]
    with steer.attach(model, darkened(lambda a, b: a - 0.8 * b)):
        got = model.generate(
            **inputs, max_new_tokens=NEW, num_beams=4, do_sample=False, eos_token_id=None, output_scores=True,
            return_dict_in_generate=True, length_penalty=0.0,
        )  # fmt: skip
    sequence = got.sequences
    first = model(**whole(family, inputs, sequence)).logits
    second = model(**whole(family, dark, sequence)).logits
    log_p = (first - 0.8 * second).log_softmax(-1)[:, length - 1 : -1]
    score = log_p.gather(-1, sequence[:, length:, None]).sum()
    assert got.sequences_scores.item() == pytest.approx(score.item(), abs=1e-3)


def test_everything_else_acts_in_both_streams_and_only_the_own_one_is_recorded() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    dark = {**inputs, "pixel_values": darker(inputs["pixel_values"])}
    shift = steer.Intervention(sites.resid_out([0], positions=positions.image()), ops.Add(randn(32), 2.0))
    with steer.attach(model, shift):
        wanted = apart(model(**inputs).logits, model(**dark).logits)
        states = model(**inputs, output_hidden_states=True).hidden_states[1]
    for order in ([shift, darkened()], [darkened(), shift]):
        with steer.attach(model, order), steer.record(model, sites.resid_out([0])) as seen:
            got = model(**inputs).logits
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(seen["resid_out", 0], states)
    with steer.attach(model, darkened()), steer.attach(model, shift):
        torch.testing.assert_close(model(**inputs).logits, wanted, atol=1e-4, rtol=1e-4)


def test_two_contrasts_are_combined_in_the_order_attached() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    dark = model(**{**inputs, "pixel_values": darker(inputs["pixel_values"])}).logits
    bright = model(**{**inputs, "pixel_values": inputs["pixel_values"] + 3}).logits
    brightened = ops.Contrast(contrast.with_pictures(lambda pixels: pixels + 3), torch.maximum)
    items = [darkened(), steer.Intervention(sites.call(), brightened)]
    with steer.attach(model, items):
        got = model(**inputs).logits
    torch.testing.assert_close(got, torch.maximum(apart(model(**inputs).logits, dark), bright), atol=1e-4, rtol=1e-4)
    with steer.attach(model, items[::-1]):
        got = model(**inputs).logits
    torch.testing.assert_close(got, apart(torch.maximum(model(**inputs).logits, bright), dark), atol=1e-4, rtol=1e-4)


def test_a_conversation_goes_on_in_both_streams_and_a_cache_that_went_on_elsewhere_is_refused() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    given = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    with steer.attach(model, darkened()):
        turn = model.generate(**inputs, **given)
        more = torch.cat([turn.sequences, tokens(1, 3) % 90 + 3], dim=1)
        ones = torch.ones_like(more)
        second = model.generate(input_ids=more, attention_mask=ones, past_key_values=turn.past_key_values, **given)
        whole_again = model.generate(input_ids=more, attention_mask=ones, pixel_values=inputs["pixel_values"], **given)
        assert torch.equal(second.sequences, whole_again.sequences)
    model(input_ids=more[:, -1:], past_key_values=second.past_key_values)
    with steer.attach(model, darkened()) as session:
        session  # noqa: B018
        fresh = model(input_ids=more[:, -1:], past_key_values=second.past_key_values)
        assert fresh.logits.shape[1] == 1
        cache = fresh.past_key_values
        with pytest.raises(InterventionError, match="went on outside"):
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :-1], layer.values[:, :, :-1]
            model(input_ids=more[:, -1:], past_key_values=cache)


def test_nothing_is_left_when_the_other_stream_fails() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    plain = model(**inputs).logits

    def fail(pixels: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    item = steer.Intervention(sites.call(), ops.Contrast(contrast.with_pictures(fail), apart))
    with pytest.raises(ZeroDivisionError), steer.attach(model, item):
        model(**inputs)
    assert not contrast.aside()
    assert torch.equal(model(**inputs).logits, plain)
    with steer.attach(model, darkened()):
        assert not torch.equal(model(**inputs).logits, plain)


def test_what_cannot_be_done_is_said() -> None:
    florence = FAMILIES["florence2"]
    with (
        pytest.raises(InterventionError, match="not the pictures"),
        steer.attach(florence.model(), darkened()) as session,
    ):
        session.model.generate(**florence.prompt(), max_new_tokens=2)
    with (
        pytest.raises(MappingError, match="image positions are not known"),
        steer.attach(tiny_llama(), blind()) as session,
    ):
        session.model(inputs_embeds=randn(1, 4, 64))
    with pytest.raises(MappingError, match="carry a state past"), steer.attach(FAMILIES["qwen3_5"].model(), blind()):
        pass
    with pytest.raises(NeverFiredError), steer.attach(FAMILIES["llava"].model(), darkened()):
        pass


def test_after_the_session_a_cache_is_as_without_us_whatever_ended_first() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    first, second = steer.attach(model, darkened()), steer.attach(model, darkened(torch.maximum))
    with first:
        with second:
            cache = model(**inputs, past_key_values=DynamicCache(config=model.config)).past_key_values
            assert len(vars(cache)["_steer_others"]) == 2
            others = list(vars(cache)["_steer_others"].values())
            assert all("_steer_others" not in vars(other) for other in others)
            cache.batch_repeat_interleave(2)
            assert all(other.layers[0].keys.shape[0] == 2 for other in others)
        cache.reorder_cache(torch.tensor([1, 0]))
        assert len(vars(cache)["_steer_others"]) == 1
    assert not [name for name in vars(cache) if name.startswith("_steer")]
    assert type(cache) is DynamicCache


def test_a_copied_cache_moves_alone_and_goes_on_in_both_streams() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    more = {"input_ids": tokens(2, 1) % 90 + 3}
    with steer.attach(model, darkened()):
        cache = model(**inputs).past_key_values
        copied = copy.deepcopy(cache)
        copied.batch_repeat_interleave(2)
        assert cache.layers[0].keys.shape[0] == 1
        got = model(**more, past_key_values=copied).logits
        alone = [model(input_ids=row[None], past_key_values=copy.deepcopy(cache)).logits for row in more["input_ids"]]
    torch.testing.assert_close(got, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_what_comes_after_the_contrast_still_knows_where_it_is() -> None:
    """The other stream's forward is framed by itself: a step on the logits finds its own rows, while writing too."""
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    turned = steer.Intervention(sites.logits(positions.generated()), ops.Scale(-1.0))
    given = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    with steer.attach(model, blind(), turned):
        got = model.generate(**inputs, **given, output_logits=True)
    length = inputs["input_ids"].shape[1]
    with steer.attach(model, blind()):
        whole_logits = torch.cat(
            [model(**whole(family, inputs, got.sequences[:, : length + n])).logits[:, -1:] for n in range(3)], dim=1
        )
    signs = torch.tensor([1.0, -1.0, -1.0])[None, :, None]
    torch.testing.assert_close(torch.stack(got.logits, 1), whole_logits * signs, atol=1e-4, rtol=1e-3)


def test_a_prompts_state_is_that_of_the_own_stream() -> None:
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    alone: list[torch.Tensor] = []
    both: list[torch.Tensor] = []
    with steer.attach(model, steer.Intervention(sites.resid_in([1]), PromptState(alone.append))):
        model(**inputs)
    with steer.attach(model, darkened(), steer.Intervention(sites.resid_in([1]), PromptState(both.append))):
        model(**inputs)
    assert len(both) == 1
    torch.testing.assert_close(both[0], alone[0])


def test_an_output_without_names_is_refused() -> None:
    family = FAMILIES["llava"]
    model = family.model()
    with pytest.raises(steer.SteerError, match="return_dict=True"), steer.attach(model, darkened()):
        model(**family.prompt(), return_dict=False)
