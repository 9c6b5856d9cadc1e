"""Positions in several dimensions: what follows a memory stands where it would in the whole sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from steer.errors import InterventionError
from steer.memory import Memory
from tests.engine.families import FAMILIES
from tests.engine.test_modes import padded

from .answers import CLOSE, GREEDY, logits, pruned, random_selection
from .test_memory import joined

NAMES = ["qwen2_5_vl", "qwen3_5"]
TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")


def asked_with(name: str, picture: bool, words: int = 4, seed: int = 2) -> dict[str, torch.Tensor]:
    family = FAMILIES[name]
    if picture:
        return family.prompt(words, seed=seed)
    ids = torch.randint(3, 90, (1, words), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}


class Placed:
    """Keeps the positions that the text tower was given in each forward."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[torch.Tensor] = []
        self._handle = model.model.language_model.register_forward_pre_hook(self._on, with_kwargs=True)

    def _on(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.seen.append(kwargs["position_ids"])

    def take(self) -> torch.Tensor:
        """The axes' positions of every forward so far, (3, B, T)."""
        seen, self.seen = torch.cat([p[-3:] for p in self.seen], dim=-1), []
        return seen


@pytest.mark.parametrize("way", ["generate", "forward"])
@pytest.mark.parametrize("picture", [True, False], ids=["picture", "words"])
@pytest.mark.parametrize("name", NAMES)
def test_positions_are_those_of_the_whole_sequence(name, picture, way) -> None:
    family = FAMILIES[name]
    model = family.model()
    context, asked = family.prompt(7, seed=1), asked_with(name, picture)
    whole = joined([context, asked])
    length = context["input_ids"].shape[1]
    true, deltas = model.model.get_rope_index(**{n: t for n, t in whole.items() if n != "pixel_values"})
    kept = Memory.empty(model).read(model, context).bind(model)
    # what an earlier call left on the model is of another sequence
    model.model.rope_deltas = torch.tensor([[-50]])
    placed = Placed(model)
    if way == "generate":
        found = model.generate(**asked, past_key_values=kept, **GREEDY)
        positions = placed.take()
        more = torch.arange(positions.shape[-1] - asked["input_ids"].shape[1]) + true.max() + 1
        true = torch.cat([true, more.expand(3, 1, -1)], dim=-1)
    else:
        found = model(**asked, past_key_values=kept)
        positions = placed.take()
    assert torch.equal(positions, true[..., length:])
    assert torch.equal(model.model.rope_deltas, deltas)
    truth = model.generate(**whole, **GREEDY)
    first = found.logits[0] if way == "generate" else found.logits[:, -1]
    torch.testing.assert_close(first, truth.logits[0], **CLOSE)


@pytest.mark.parametrize("picture", [True, False], ids=["picture", "words"])
@pytest.mark.parametrize("name", NAMES)
def test_words_alone_are_read_after_a_picture_that_another_prompt_had(name, picture) -> None:
    model = FAMILIES[name].model()
    context, asked = asked_with(name, False, 7, seed=1), asked_with(name, picture)
    truth = model.generate(**joined([context, asked]), **GREEDY)
    left = torch.tensor([[-50]])
    model.model.rope_deltas = left
    kept = Memory.empty(model).read(model, context).bind(model)
    assert model.model.rope_deltas is left
    assert kept.rope_deltas.tolist() == [[0]]
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


@pytest.mark.parametrize("picture", [True, False], ids=["picture", "words"])
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_of_questions(name, picture) -> None:
    family = FAMILIES[name]
    model = family.model()
    context = family.prompt(7, seed=1)
    kept = Memory.empty(model).read(model, context)
    kept = pruned(kept, random_selection(kept)).bind(model)
    questions = [asked_with(name, picture, words, seed=words) for words in (3, 6)]
    if name == "qwen3_5":
        # its recurrent states would read the padding
        for call in (model.generate, model, lambda **given: kept.read(model, padded(questions))):
            with pytest.raises(InterventionError, match="of one length"):
                call(**padded(questions), past_key_values=kept)
        questions = [asked_with(name, picture, 4, seed=seed) for seed in (3, 6)]
    alone = [logits(model.generate(**q, past_key_values=kept, **GREEDY)) for q in questions]
    batch = padded(questions)
    together = logits(model.generate(**batch, past_key_values=kept, **GREEDY))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)
    last = model(**batch, past_key_values=kept).logits[:, -1]
    torch.testing.assert_close(last, together[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("picture", [True, False], ids=["picture", "words"])
@pytest.mark.parametrize("name", NAMES)
def test_a_padded_batch_of_contexts(name, picture) -> None:
    """Each row of the memory is what it is alone."""
    family = FAMILIES[name]
    model = family.model()
    contexts = [family.prompt(words, seed=words) for words in (5, 9)]
    questions = [asked_with(name, picture, words, seed=words) for words in ((6, 3) if name == "qwen2_5_vl" else (4, 4))]
    alone = []
    for context, asked in zip(contexts, questions, strict=True):
        alone.append(logits(model.generate(**joined([context, asked]), **GREEDY)))
    kept = Memory.empty(model).read(model, padded(contexts)).bind(model)
    together = logits(model.generate(**padded(questions), past_key_values=kept, **GREEDY))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_in_one_part_after_another(name) -> None:
    family = FAMILIES[name]
    model = family.model()
    parts = [family.prompt(3, seed=1), asked_with(name, False, 5), family.prompt(2, seed=3)]
    asked = asked_with(name, True, 3, seed=4)
    truth = model.generate(**joined([*parts, asked]), **GREEDY)
    kept = Memory.empty(model)
    stale = model.model.rope_deltas = torch.tensor([[7]])
    for part in parts:
        kept = kept.read(model, part)
        assert model.model.rope_deltas is stale
    kept.bind(model)
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)
    full = model.generate(**joined([*parts, asked]), past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(full), logits(truth), **CLOSE)
    assert torch.equal(full.sequences, truth.sequences)


@pytest.mark.parametrize(
    "option", [{"num_beams": 3}, {"prefill_chunk_size": 2}, {"prompt_lookup_num_tokens": 2}], ids=str
)
@pytest.mark.parametrize("name", NAMES)
def test_other_ways_of_decoding(name, option) -> None:
    if name == "qwen3_5" and "prompt_lookup_num_tokens" in option:
        pytest.skip("transformers refuses guesses on recurrent states")
    family = FAMILIES[name]
    model = family.model()
    context, asked = family.prompt(7, seed=1), asked_with(name, False, 5)
    kept = Memory.empty(model).read(model, context).bind(model)
    whole = joined([context, asked])
    # transformers reads a prompt with a picture in one piece
    usual = {} if "prefill_chunk_size" in option else option
    truth = model.generate(**whole, **GREEDY, **usual)
    found = model.generate(**asked, past_key_values=kept, **GREEDY, **option)
    length = context["input_ids"].shape[1]
    assert torch.equal(found.sequences, truth.sequences[:, length:])
    torch.testing.assert_close(logits(found), logits(truth), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_second_turn_with_a_picture_of_its_own(name) -> None:
    """What comes back from one question is asked again, by words, from where it stands."""
    family = FAMILIES[name]
    model = family.model()
    context, first = family.prompt(7, seed=1), asked_with(name, True)
    kept = Memory.empty(model).read(model, context).bind(model)
    said = model.generate(**joined([context, first]), past_key_values=kept, **GREEDY)
    more = torch.randint(3, 90, (1, 3), generator=torch.Generator().manual_seed(8))
    ids = torch.cat([said.sequences, more], 1)
    found = model.generate(input_ids=ids, past_key_values=said.past_key_values, **GREEDY)
    whole = joined([context, first])
    grown = ids.shape[1] - whole["input_ids"].shape[1]
    whole |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    whole["mm_token_type_ids"] = torch.nn.functional.pad(whole["mm_token_type_ids"], (0, grown))
    truth = model.generate(**whole, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


def test_positions_of_a_whole_sequence_are_cut_as_its_tokens_are() -> None:
    family = FAMILIES["qwen2_5_vl"]
    model = family.model()
    context, asked = family.prompt(7, seed=1), family.prompt(4, seed=2)
    whole = joined([context, asked])
    places, _ = model.model.get_rope_index(**{n: t for n, t in whole.items() if n != "pixel_values"})
    truth = model(**whole, position_ids=places).logits[:, context["input_ids"].shape[1] :]
    kept = Memory.empty(model).read(model, context).bind(model)
    found = model(**whole, position_ids=places, past_key_values=kept).logits
    torch.testing.assert_close(found, truth, **CLOSE)


def test_whole_sequences_of_several_rows_with_pictures_are_refused() -> None:
    family = FAMILIES["llava"]
    model, context = family.model(), family.prompt(7, seed=1)
    kept = Memory.empty(model).read(model, context).bind(model)
    whole = joined([context, family.prompt(4, seed=2)])
    two = {name: torch.cat([value, value]) for name, value in whole.items()}
    with pytest.raises(InterventionError, match="pixel_values holds the pictures of all 2 rows.*questions alone"):
        model.generate(**two, past_key_values=kept, **GREEDY)
