"""Every way of decoding after a pruned memory gives what it gives after the whole context with the others hidden."""

from __future__ import annotations

import copy

import pytest
import torch

from steer import memory
from steer.errors import InterventionError
from steer.memory import Memory
from tests.engine.helpers import randn, tiny_llama, tokens

from .answers import CLOSE, GREEDY, Whole, llama_with, logits, pruned, question, random_selection

PADDED = {
    "no padding": ((), ()),
    "rows of the context": ((0, 5), ()),
    "rows of the question": ((), (2, 0)),
    "both": ((3, 0), (0, 2)),
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("padding", PADDED)
def test_padded_rows(padding, share, implementation) -> None:
    before, after = PADDED[padding]
    model, kept, whole = llama_with(2, padding=before, share=share, implementation=implementation)
    asked = question(2, padding=after)
    truth = whole.generate(asked)
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)
    assert torch.equal(found.sequences, truth.sequences)
    real = asked["attention_mask"].bool()
    rows = model(**asked, past_key_values=kept).logits
    torch.testing.assert_close(rows[real], whole.forward(asked)[real], **CLOSE)


def test_padded_rows_are_what_they_are_alone() -> None:
    """Nothing of a row depends on its neighbour: neither on its length nor on what it kept."""
    model, kept, whole = llama_with(2, padding=(4, 0))
    asked = question(2, padding=(0, 3))
    together = logits(model.generate(**asked, past_key_values=kept, **GREEDY))
    for row, (front, skip) in enumerate([(4, 0), (0, 3)]):
        context = {"input_ids": whole.context["input_ids"][row : row + 1, front:]}
        alone = Memory.empty(model).read(model, context)
        keep = {layer: k[row : row + 1, :, front:] for layer, k in whole.keep.items()}
        alone = alone.keep(keep).bind(model)
        one = model.generate(asked["input_ids"][row : row + 1, skip:], past_key_values=alone, **GREEDY)
        torch.testing.assert_close(together[row : row + 1], logits(one), **CLOSE)


@pytest.mark.parametrize("share", [None, 0.4])
def test_one_row_of_memory_serves_a_padded_batch(share) -> None:
    model, kept, whole = llama_with(1, share=share)
    asked = question(3, padding=(0, 2, 1))
    truth = whole.generate(asked)
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


def test_whole_sequences_of_unequal_length_are_known_for_what_they_are() -> None:
    """A processor pads them in front of the context, so that each row's context stands elsewhere."""
    model, kept, whole = llama_with(1)
    asked = question(3, length=5, padding=(0, 3, 1))
    truth = whole.generate(asked)
    front = whole.context["input_ids"]
    rows = [torch.cat([front[0], q[q != 0]]) for q in asked["input_ids"]]
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    found = model.generate(input_ids=ids, attention_mask=mask, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)
    assert torch.equal(found.sequences[:, :longest], ids)
    last = model(input_ids=ids, attention_mask=mask, past_key_values=kept).logits[:, -1]
    torch.testing.assert_close(last, truth.logits[0], **CLOSE)


@pytest.mark.parametrize("padding", [(), (2, 0)])
def test_a_question_longer_than_the_memory_is_no_whole_sequence(padding) -> None:
    model, kept, whole = llama_with(1, length=6)
    asked = question(2, length=9, padding=padding)
    truth = whole.generate(asked)
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


def test_what_is_of_neither_tokens_nor_pictures_is_handed_on() -> None:
    model, kept, whole = llama_with(1)
    asked = question(1)
    ids = torch.cat([whole.context["input_ids"], asked["input_ids"]], 1)
    found = model(input_ids=ids, past_key_values=kept, logits_to_keep=torch.tensor([-1])).logits
    torch.testing.assert_close(found, whole.forward(asked)[:, -1:], **CLOSE)


WAYS = {
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "output_scores": True},
    "sampling": {"do_sample": True, "num_return_sequences": 3},
    "sampled beams": {"do_sample": True, "num_beams": 2},
}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_several_answers_to_each_question(way, rows) -> None:
    model, kept, whole = llama_with(rows, padding=(0, 3) if rows == 2 else ())
    asked = question(rows)
    torch.manual_seed(1)
    truth = whole.generate(asked, **WAYS[way])
    torch.manual_seed(1)
    found = model.generate(**asked, past_key_values=kept, **{**GREEDY, **WAYS[way]})
    assert torch.equal(found.sequences, truth.sequences)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


def test_several_answers_asked_for_by_a_generation_config() -> None:
    model, kept, whole = llama_with(1)
    asked = question(1)
    truth = whole.generate(asked, num_beams=3)
    model.generation_config.num_beams = 3
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    assert torch.equal(found.sequences, truth.sequences)
    config = copy.deepcopy(model.generation_config)
    model.generation_config.num_beams = None
    found = model.generate(**asked, past_key_values=kept, generation_config=config, **GREEDY)
    assert torch.equal(found.sequences, truth.sequences)
    config.num_beams = 2
    found = model.generate(**asked, past_key_values=kept, generation_config=config, **{**GREEDY, "num_beams": 3})
    assert torch.equal(found.sequences, truth.sequences)


@pytest.mark.parametrize("helper", ["assistant", "lookup"])
def test_guesses_that_are_taken_back(helper) -> None:
    model, kept, whole = llama_with(1)
    asked = question(1, length=6)
    asked["input_ids"][:, 3:] = asked["input_ids"][:, :3]
    truth = whole.generate(asked, max_new_tokens=9)
    assistant = tiny_llama(seed=0)
    assistant.lm_head.weight.data += 0.05 * randn(*assistant.lm_head.weight.shape)
    option = {"prompt_lookup_num_tokens": 2} if helper == "lookup" else {"assistant_model": assistant}
    found = model.generate(**asked, past_key_values=kept, **{**GREEDY, **option, "max_new_tokens": 9})
    assert torch.equal(found.sequences, truth.sequences)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


@pytest.mark.parametrize("padding", [((3,), ()), ((), (2,))])
def test_guesses_behind_padding_are_refused(padding) -> None:
    """transformers cuts a mask that is longer than the question, and the model would then see other tokens."""
    before, after = padding
    model, kept, _ = llama_with(1, padding=before)
    with pytest.raises(InterventionError, match="padding"):
        model.generate(**question(1, padding=after), past_key_values=kept, prompt_lookup_num_tokens=2, **GREEDY)


def test_nothing_that_was_kept_can_be_taken_back() -> None:
    model, kept, _ = llama_with(1)
    with memory.masks(model):
        cache = kept.cache()
        model(input_ids=tokens(1, 3), past_key_values=cache)
        cache.crop(-2)
        assert cache.get_seq_length() == kept.length + 1
        with pytest.raises(InterventionError, match="2 tokens"):
            cache.crop(-2)


@pytest.mark.parametrize("share", [None, 0.5])
@pytest.mark.parametrize("form", ["question alone", "whole sequence"])
def test_a_prompt_read_in_chunks(form, share) -> None:
    model, kept, whole = llama_with(1, share=share)
    asked = question(1, length=7)
    truth = whole.generate(asked)
    given = asked if form == "question alone" else {"input_ids": torch.cat([kept.tokens, asked["input_ids"]], 1)}
    found = model.generate(**given, past_key_values=kept, prefill_chunk_size=3, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("how", ["only what is new", "everything so far"])
def test_turns_of_a_conversation(how, rows) -> None:
    """The cache that comes back is asked again, behind a question of its own and an answer."""
    model, kept, whole = llama_with(rows, padding=(0, 4) if rows == 2 else ())
    first, second = question(rows, seed=7), question(rows, seed=8)
    ids = torch.cat([kept.tokens, first["input_ids"]], 1)
    mask = torch.cat([kept.mask.long(), first["attention_mask"]], 1)
    said = model.generate(input_ids=ids, attention_mask=mask, past_key_values=kept, **GREEDY)
    so_far = torch.cat([said.sequences, second["input_ids"]], 1)
    mask = torch.nn.functional.pad(mask, (0, so_far.shape[1] - mask.shape[1]), value=1)
    new = so_far if how == "everything so far" else so_far[:, said.past_key_values.get_seq_length() :]
    found = model.generate(input_ids=new, attention_mask=mask, past_key_values=said.past_key_values, **GREEDY)
    rest = so_far[:, kept.length :]
    truth = whole.generate({"input_ids": rest, "attention_mask": mask[:, kept.length :]})
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


def test_two_questions_in_any_order() -> None:
    model, kept, _ = llama_with(1)
    before = [layer.keys.clone() for layer in kept.layers]
    asked = {name: question(1, seed=seed) for name, seed in (("a", 7), ("b", 8))}

    def answers(order: str) -> dict[str, torch.Tensor]:
        return {n: logits(model.generate(**asked[n], past_key_values=kept, **GREEDY)) for n in order}

    def step_by_step(order: str) -> dict[str, torch.Tensor]:
        """One token of each in turn."""
        caches = {n: kept.cache() for n in order}
        ids, steps = {n: asked[n]["input_ids"] for n in order}, {n: [] for n in order}
        for _ in range(GREEDY["max_new_tokens"]):
            for n in order:
                steps[n].append(model(input_ids=ids[n], past_key_values=caches[n]).logits[:, -1])
                ids[n] = steps[n][-1].argmax(-1, keepdim=True)
        return {n: torch.stack(s, 1) for n, s in steps.items()}

    one, other, both = answers("ab"), answers("ba"), step_by_step("ab")
    for n in asked:
        assert torch.equal(one[n], other[n])
        assert torch.equal(both[n], step_by_step(n)[n])
        torch.testing.assert_close(both[n], one[n], **CLOSE)
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, kept.layers, strict=True))


def test_a_copied_cache_goes_on_as_the_first_would() -> None:
    model, kept, _ = llama_with(1)
    with memory.masks(model):
        cache = kept.cache()
        model(input_ids=tokens(1, 3), past_key_values=cache)
        second = copy.deepcopy(cache)
        one = model(input_ids=tokens(1, 2, seed=4), past_key_values=cache).logits
        assert second.get_seq_length() == kept.length + 3
        other = model(input_ids=tokens(1, 2, seed=4), past_key_values=second).logits
    assert torch.equal(one, other)
    # what is shared is not copied
    assert second.layers[0].kept.keys is kept.layers[0].keys


def test_bfloat16() -> None:
    """As near to fp32 as the whole context in bfloat16 is."""
    _, _, whole = llama_with(2, padding=(0, 3))
    asked = question(2)
    exact = whole.forward(asked)
    small = tiny_llama().bfloat16()
    loose = Whole(small, whole.context, whole.keep).forward(asked)
    low = pruned(Memory.empty(small).read(small, whole.context), whole.keep).bind(small)
    found = small(**asked, past_key_values=low).logits
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.5 * (loose - exact).norm() + 1e-3
    assert low.layers[0].keys.dtype == torch.bfloat16


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_everything_kept_is_no_change_at_all(implementation) -> None:
    """Bit by bit the same as transformers' own cache of the same context, and as a selection of everything."""
    model = tiny_llama(implementation=implementation)
    context, asked = {"input_ids": tokens(1, 14, seed=3)}, question(1)
    kept = Memory.empty(model).read(model, context)
    everything = pruned(kept, random_selection(kept, share=2.0))
    truth = Whole(model, context, {}).generate(asked)
    for one in (kept, everything):
        one.bind(model)
        found = model.generate(**asked, past_key_values=one, **GREEDY)
        assert torch.equal(logits(found), logits(truth))
        one.unbind()
        bare = model.generate(
            input_ids=torch.cat([kept.tokens, asked["input_ids"]], 1), past_key_values=one.cache(model=model), **GREEDY
        )
        assert torch.equal(logits(bare), logits(truth))


def test_options_mean_what_they_mean_without_a_memory() -> None:
    """None is an option too, lengths are of what was given, and a configuration may be given by place."""
    model, kept, whole = llama_with(1)
    asked = question(1)
    ids = torch.cat([kept.tokens, asked["input_ids"]], 1)
    truth = whole.generate(asked, max_new_tokens=6)
    model.generation_config.eos_token_id = int(truth.sequences[0, -4])
    found = model.generate(ids, past_key_values=kept, **{**GREEDY, "max_new_tokens": 6})
    assert torch.equal(found.sequences[:, kept.length :], truth.sequences)
    options = {"do_sample": False, "eos_token_id": None}
    found = model.generate(ids, past_key_values=kept, max_length=ids.shape[1] + 3, **options)
    assert found.shape[1] == ids.shape[1] + 3
    config = copy.deepcopy(model.generation_config)
    config.max_new_tokens, config.eos_token_id = 4, None
    found = model.generate(ids, config, past_key_values=kept, eos_token_id=None)
    assert torch.equal(found[:, kept.length :], truth.sequences[:, : asked["input_ids"].shape[1] + 4])


def test_a_memory_of_nothing_is_no_change() -> None:
    model = tiny_llama()
    asked = question(2, padding=(0, 2))
    truth = model.generate(**asked, **GREEDY)
    nothing = Memory.empty(model).bind(model)
    found = model.generate(**asked, past_key_values=nothing, **GREEDY)
    assert torch.equal(logits(found), logits(truth))
    last = model(**asked, past_key_values=nothing).logits[:, -1]
    torch.testing.assert_close(last, truth.logits[0], **CLOSE)


def test_a_part_that_is_read_twice_is_there_twice() -> None:
    model = tiny_llama()
    part, asked = tokens(1, 5, seed=3), question(1)
    kept = Memory.empty(model).read(model, {"input_ids": part}).read(model, {"input_ids": part})
    longer = torch.cat([part, part, tokens(1, 2)], 1)
    kept = kept.read(model, {"input_ids": longer})
    truth = model.generate(torch.cat([part, part, longer, asked["input_ids"]], 1), **GREEDY)
    kept.bind(model)
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


def test_rows_of_a_cache_are_chosen_repeated_and_counted() -> None:
    """What transformers does to a cache's rows, and a batch that is larger than the cache it is given."""
    model, kept, _ = llama_with(2)
    rows = question(4)["input_ids"]
    with memory.masks(model):
        truth = model(input_ids=rows, past_key_values=kept.cache(4)).logits
        spread = kept.cache()
        torch.testing.assert_close(model(input_ids=rows, past_key_values=spread).logits, truth, **CLOSE)
        with pytest.raises(InterventionError, match="a batch of 3 cannot go on from a cache of 4 rows"):
            model(input_ids=rows[:3], past_key_values=spread)
        with pytest.raises(InterventionError, match="a batch of 3 cannot go on from a cache of 2 rows"):
            model(input_ids=rows[:3], past_key_values=kept.cache())
        cache = kept.cache()
        cache.batch_select_indices(torch.tensor([1]))
        torch.testing.assert_close(model(input_ids=rows[2:3], past_key_values=cache).logits, truth[2:3], **CLOSE)


def test_layers_write_their_own_keys_for_a_larger_batch() -> None:
    """Without a mask to be made first, a layer is spread when its keys are written."""
    _, kept, _ = llama_with(2)
    layer, new = kept.cache().layers[0], randn(4, 2, 3, 12)
    keys, values = layer.update(new, -new)
    before = [part.repeat_interleave(2, 0) for part in kept.cache().layers[0].whole()]
    assert torch.equal(keys, torch.cat([before[0], new], 2))
    assert torch.equal(values, torch.cat([before[1], -new], 2))
