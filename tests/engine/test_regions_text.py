"""Pieces of a prompt's text as positions: which tokens hold them, whatever stands around and between."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from steer import regions
from steer.errors import InterventionError, UnknownNameError

from .regions_processors import byte_tokenizer, cropping, merging, noise, tiling, word_tokenizer

CAT = (("c", "a"), ("ca", "t"), ("Ġ", "cat"))
PICTURED = {"cropping": cropping, "merging": merging, "tiling": tiling}


def encoded(tokenizer: Any, *texts: str) -> dict[str, torch.Tensor]:
    return tokenizer(list(texts), return_tensors="pt", padding=True)


def chosen(inputs: dict[str, torch.Tensor], positions: Any, row: int = 0) -> list[int]:
    """The ids of the chosen tokens of a row."""
    assert positions.rows.shape == inputs["input_ids"].shape
    return inputs["input_ids"][row][positions.rows[row]].tolist()


@pytest.mark.parametrize("piece", ["cat", " cat", "cat ", "  cat "])
def test_spaces_around_a_piece_do_not_matter(piece: str) -> None:
    tokenizer = byte_tokenizer(CAT)
    inputs = encoded(tokenizer, "the cat sat", "cat naps on")
    positions = regions.text_span(tokenizer, inputs, piece)
    assert chosen(inputs, positions) == [tokenizer.convert_tokens_to_ids("Ġcat")]
    assert chosen(inputs, positions, row=1) == [tokenizer.convert_tokens_to_ids("cat")]


def test_a_token_that_shares_one_letter_belongs_to_the_piece() -> None:
    tokenizer = byte_tokenizer(CAT)
    inputs = encoded(tokenizer, "the cat sat")
    positions = regions.text_span(tokenizer, inputs, "e ca")
    assert tokenizer.convert_ids_to_tokens(chosen(inputs, positions)) == ["e", "Ġcat"]


@pytest.mark.parametrize(
    ("occurrence", "at"), [(0, [0]), (1, [1]), (-1, [2]), (None, [0, 1, 2])], ids=["first", "second", "last", "all"]
)
def test_which_occurrence(occurrence: int | None, at: list[int]) -> None:
    tokenizer = word_tokenizer()
    inputs = encoded(tokenizer, "a cat sat on the cat and cat")
    positions = regions.text_span(tokenizer, inputs, "cat", occurrence=occurrence)
    where = [1, 5, 7]
    assert positions.rows[0].nonzero().flatten().tolist() == [where[i] for i in at]


def test_within_a_longer_piece() -> None:
    tokenizer = word_tokenizer()
    inputs = encoded(tokenizer, "a cat sat on the cat and cat")
    positions = regions.text_span(tokenizer, inputs, "cat", within="the cat and")
    assert positions.rows[0].nonzero().flatten().tolist() == [5]


def test_rows_of_a_padded_batch_have_pieces_of_their_own() -> None:
    tokenizer = word_tokenizer()
    inputs = encoded(tokenizer, "a cat sat on the mat", "the dog")
    positions = regions.text_span(tokenizer, inputs, ["the mat", "dog"])
    assert positions.rows.nonzero().tolist() == [[0, 4], [0, 5], [1, 5]]
    alone = regions.text_span(tokenizer, inputs, "dog", row=1)
    assert alone.rows.nonzero().tolist() == [[1, 5]]


def test_case_and_spaces_are_overlooked_where_the_tokenizer_changes_them() -> None:
    tokenizer = word_tokenizer()
    inputs = encoded(tokenizer, "user: What colour is it? a cat")
    positions = regions.text_span(tokenizer, inputs, "What colour is it?")
    assert tokenizer.decode(chosen(inputs, positions)) == "what colour is it ?"


def test_a_word_that_the_tokenizer_does_not_know_is_found_as_it_writes_it() -> None:
    tokenizer = word_tokenizer()
    inputs = encoded(tokenizer, "a zebra sat")
    assert regions.text_span(tokenizer, inputs, "zebra sat").rows[0].tolist() == [False, True, True]


def test_letters_of_several_tokens() -> None:
    tokenizer = byte_tokenizer()
    inputs = encoded(tokenizer, "a né b")
    # é is two bytes, each a token
    assert regions.text_span(tokenizer, inputs, "é").rows[0].tolist() == [False] * 3 + [True] * 2 + [False] * 2


def test_tokens_that_the_tokenizer_would_not_make_of_their_text() -> None:
    tokenizer = byte_tokenizer(CAT)
    tokens = ["a", "Ġ", "c", "a", "t", *tokenizer.tokenize("é"), "Ġcat"]
    inputs = {"input_ids": torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])}
    assert tokenizer(tokenizer.decode(inputs["input_ids"][0]))["input_ids"] != inputs["input_ids"][0].tolist()
    assert regions.text_span(tokenizer, inputs, "at").rows[0].nonzero().flatten().tolist() == [3, 4]
    assert regions.text_span(tokenizer, inputs, "é").rows[0].nonzero().flatten().tolist() == [5, 6]
    assert regions.text_span(tokenizer, inputs, "cat", occurrence=1).rows[0].nonzero().flatten().tolist() == [7]


@pytest.mark.parametrize("kind", PICTURED)
def test_words_after_pictures_that_became_many_tokens(kind: str) -> None:
    processor = PICTURED[kind]()
    text = "user : <image> a cat sat <image> on the cat"
    inputs = processor(text=[text], images=[noise(40, 24), noise(24, 40)], return_tensors="pt")
    cat = processor.tokenizer.convert_tokens_to_ids("cat")
    where = (inputs["input_ids"][0] == cat).nonzero().flatten().tolist()
    assert len(where) == 2
    for occurrence in (0, 1):
        positions = regions.text_span(processor, inputs, "cat", occurrence=occurrence)
        assert positions.rows[0].nonzero().flatten().tolist() == [where[occurrence]]
        start = [text.index("cat"), text.rindex("cat")][occurrence]
        positions = regions.char_range(processor, inputs, text, start, start + 3)
        assert positions.rows[0].nonzero().flatten().tolist() == [where[occurrence]]


@pytest.mark.parametrize("kind", PICTURED)
def test_a_range_of_characters_takes_the_pictures_between_its_words(kind: str) -> None:
    processor = PICTURED[kind]()
    text = "user : <image> a cat sat <image> on the cat"
    inputs = processor(text=[text], images=[noise(40, 24), noise(24, 40)], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    positions = regions.char_range(processor, inputs, text, text.index("sat"), text.index("on") + 2)
    first, last = (ids.index(processor.tokenizer.convert_tokens_to_ids(word)) for word in ("sat", "on"))
    assert positions.rows[0].nonzero().flatten().tolist() == list(range(first, last + 1))
    assert last - first > 4


def test_a_range_of_characters_in_one_row_of_a_padded_batch() -> None:
    tokenizer = word_tokenizer()
    prompt = "the dog sat on the dog"
    inputs = encoded(tokenizer, "a cat sat on the mat and dog", prompt)
    start = prompt.rindex("dog")
    positions = regions.char_range(tokenizer, inputs, prompt, start, start + 3, row=1)
    assert positions.rows.nonzero().tolist() == [[1, 7]]


def test_the_prompt_as_it_is_searched() -> None:
    processor = cropping()
    inputs = processor(text=["user : <image> a cat"], images=[noise(20, 20)], return_tensors="pt")
    # this tokenizer forgets where spaces were
    assert regions.prompt_text(processor, inputs).replace(" ", "") == "user:<image>acat"


def test_errors_show_the_prompt_and_the_nearest_piece() -> None:
    tokenizer = byte_tokenizer()
    inputs = encoded(tokenizer, "a cat sat on the mat")
    with pytest.raises(InterventionError, match=r"'the hat'.*nearest: 'the mat'.*a cat sat on the mat"):
        regions.text_span(tokenizer, inputs, "the hat")
    with pytest.raises(InterventionError, match=r"occurrence 3 of 'at'.*3 time.*0 to 2"):
        regions.text_span(tokenizer, inputs, "at", occurrence=3)
    with pytest.raises(InterventionError, match=r"occurrence 1 of 'at'.*1 time"):
        regions.text_span(tokenizer, inputs, "at", occurrence=1, within="the mat")
    with pytest.raises(InterventionError, match="empty"):
        regions.text_span(tokenizer, inputs, "  ")
    with pytest.raises(InterventionError, match="2 pieces"):
        regions.text_span(tokenizer, inputs, ["a", "cat"])
    with pytest.raises(UnknownNameError, match="row '1'"):
        regions.text_span(tokenizer, inputs, "cat", row=1)
    with pytest.raises(InterventionError, match="return_tensors"):
        regions.text_span(tokenizer, {"input_ids": [[1, 2]]}, "cat")
    for start, stop in ((3, 3), (-1, 2), (0, 99)):
        with pytest.raises(InterventionError, match="0 <= start < stop <= 20"):
            regions.char_range(tokenizer, inputs, "a cat sat on the mat", start, stop)
    with pytest.raises(InterventionError, match="1 time.*0 time"):
        regions.char_range(tokenizer, inputs, "another prompt", 0, 7)


def test_a_range_that_is_only_a_picture_is_refused() -> None:
    processor = cropping()
    inputs = processor(text=["user : <image> a cat"], images=[noise(20, 20)], return_tensors="pt")
    with pytest.raises(InterventionError, match="no words.*image_region"):
        regions.char_range(processor, inputs, "user : <image> a cat", 7, 14)


def test_a_piece_that_is_there_letter_by_letter_goes_before_one_in_another_case() -> None:
    tokenizer = byte_tokenizer(CAT)
    inputs = encoded(tokenizer, "cat Cat")
    positions = regions.text_span(tokenizer, inputs, "Cat")
    assert tokenizer.convert_ids_to_tokens(chosen(inputs, positions)) == ["C", "a", "t"]
