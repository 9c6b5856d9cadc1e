"""Where the vectors of a context stand in the texts of the classes, for tokenizers of different kinds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

import steer
from steer_prompts import _prompts
from tests.prompts.models import build

NAMES = ["cat", "fire extinguisher", "big red apple", "dog"]
POSITIONS = ("end", "middle", "front")
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def subwords(around: str) -> Any:
    """A byte-level tokenizer that has learned little, so that a name is several tokens."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words = ["a photo of a cat dog. fire extinguisher. big red apple. X the etc... naïve 日本"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(words, BpeTrainer(vocab_size=330, special_tokens=list(SPECIAL), initial_alphabet=letters))
    special = [(name, inner.token_to_id(name)) for name in ("<s>", "</s>")]
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def stream(tokenizer: Any, slots: int = 64, pads_matter: bool = False) -> Any:
    """As much of a `TwoStream` as the layout looks at."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        slots=slots,
        pads_matter=pads_matter,
        device=torch.device("cpu"),
        map=SimpleNamespace(model_class="Model"),
    )


KINDS = {
    "first and last": subwords("<s> $A </s>"),
    "last only": subwords("$A </s>"),
    "none": subwords("$A"),
    "two in front": subwords("<s> <s> $A </s>"),
    "clip": build("clip")[1].tokenizer,
    "siglip": build("siglip")[1].tokenizer,
}
some_names = st.lists(
    st.sampled_from([*NAMES, "etc.", "...", "naïve_日本", "a_b  c", "x.", "C++"]), min_size=1, max_size=4, unique=True
)


def without(row: torch.Tensor, places: torch.Tensor) -> list[int]:
    return [one for index, one in enumerate(row.tolist()) if index not in set(places.tolist())]


@settings(max_examples=40)
@given(st.sampled_from(sorted(KINDS)), some_names, st.integers(1, 6), st.sampled_from(POSITIONS), st.booleans())
def test_without_its_slots_a_prompt_is_the_plain_text(kind, names, count, position, pads_matter):
    one = stream(KINDS[kind], pads_matter=pads_matter)
    made = _prompts.with_context(one, names, count, "", position)
    ids, hold = made.inputs["input_ids"], _prompts.placeholder(one)
    assert made.slots.shape == (len(names), count)
    plain = [one.tokenizer(f"{_prompts.words_of(name)}.")["input_ids"] for name in names]
    assert ids.shape[1] == (one.slots if pads_matter else max(map(len, plain)) + count)
    for name, row, places, text in zip(names, ids, made.slots, plain, strict=True):
        assert places.tolist() == sorted(set(places.tolist())), name
        assert (row[places] == hold).all()
        rest = without(row, places)
        assert rest[: len(text)] == text
        assert set(rest[len(text) :]) <= {one.tokenizer.pad_token_id or 0}
    assert set(made.inputs) == set(one.tokenizer("a"))
    if "attention_mask" in made.inputs:
        assert made.inputs["attention_mask"].sum(1).tolist() == [len(text) + count for text in plain]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("position", POSITIONS)
def test_the_name_stands_where_it_was_asked_for(kind, position):
    """Before, between or after the vectors, whole; the full stop after both."""
    one = stream(KINDS[kind])
    made = _prompts.with_context(one, NAMES, 3, "", position)
    for name, row, places in zip(NAMES, made.inputs["input_ids"], made.slots, strict=True):
        words, stop = _prompts.words_in(one, name), _prompts.words_in(one, f"{name}.")[-1]
        whole = row.tolist()
        start = next(i for i in range(len(whole)) if whole[i : i + len(words)] == words)
        before = int((places < start).sum())
        assert before == {"end": 3, "middle": 1, "front": 0}[position]
        assert whole[max(int(places.max()) + 1, start + len(words))] == stop
        assert int(places.max()) - int(places.min()) == 2 + len(words) * (0 < before < 3)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_words_of_init_beyond_the_vectors_stay_before_the_name(kind):
    one = stream(KINDS[kind])
    words = _prompts.words_in(one, "a photo of a")
    made = _prompts.with_context(one, ["cat"], 2, "a photo of a", "end")
    row = made.inputs["input_ids"][0]
    expected = [*words[2:], *_prompts.words_in(one, "cat.")]
    start = int(made.slots[0, -1]) + 1
    assert row[start : start + len(expected)].tolist() == expected
    whole = _prompts.with_context(one, ["cat"], len(words), "a photo of a", "end")
    assert without(whole.inputs["input_ids"][0], whole.slots[0]) == one.tokenizer("cat.")["input_ids"]


@pytest.mark.parametrize("position", POSITIONS)
def test_a_context_that_exactly_fits_and_one_that_is_too_long(position):
    tokenizer = KINDS["first and last"]
    most = max(len(tokenizer(f"{name}.")["input_ids"]) for name in NAMES)
    one = stream(tokenizer, slots=most + 5)
    made = _prompts.with_context(one, NAMES, 5, "", position)
    assert made.inputs["input_ids"].shape == (len(NAMES), one.slots)
    with pytest.raises(steer.SteerError, match="reads at most") as caught:
        _prompts.with_context(one, NAMES, 6, "", position)
    longest = max(NAMES, key=lambda name: len(tokenizer(f"{name}.")["input_ids"]))
    assert repr(longest) in str(caught.value)
    assert str(one.slots) in str(caught.value)


def test_a_name_without_tokens_has_its_context_inside_the_text():
    """A tokenizer may throw punctuation away, and then nothing is left of a name: not behind the end of the text."""
    for around, start in (("<s> $A </s>", 1), ("$A </s>", 0)):
        tokenizer = subwords(around)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.CharDelimiterSplit("+"), pre_tokenizers.CharDelimiterSplit(".")]
        )
        one = stream(tokenizer)
        made = _prompts.with_context(one, ["++"], 2, "", "end")
        assert made.slots.tolist() == [[start, start + 1]]
        assert made.inputs["input_ids"][0, -1] == tokenizer.eos_token_id


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_placeholder_is_no_special_token(kind):
    one = stream(KINDS[kind])
    assert _prompts.placeholder(one) not in one.tokenizer.all_special_ids


def test_a_tokenizer_that_knows_no_word_is_an_error():
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "dog": 1}, unk_token="<unk>"))
    blind = hf.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    with pytest.raises(steer.SteerError, match="knows none of X, a, the"):
        _prompts.placeholder(stream(blind))


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "", 3])
def test_templates_without_one_place_for_the_name(template):
    with pytest.raises(steer.SteerError, match="one {} for the name") as caught:
        _prompts.filled(template, "cat")
    assert repr(template) in str(caught.value)


def test_a_template_is_filled_and_not_formatted():
    assert _prompts.filled("a {} of {type} {0} }", "big_cat") == "a big cat of {type} {0} }"
    assert _prompts.filled("a {}.", "{}") == "a {}."
