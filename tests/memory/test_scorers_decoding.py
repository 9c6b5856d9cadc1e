"""Scorers where decoding is out of the ordinary: guesses that are taken back, prefill in chunks, windowed layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

import steer
from steer.memory import KeptLayer
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama, tokens

from .dense import hidden
from .test_scorers import CLOSE, GREEDY, method, watched

NEW = 10
WINDOWS = ("sliding_attention", "full_attention")
OPTIONS: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}


def repeating() -> dict[str, torch.Tensor]:
    """A prompt that a guesser finds guesses in."""
    ids = tokens(1, 11).repeat(1, 2)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("every", [None, 2])
@pytest.mark.parametrize("kind", ["lookup", "assistant"])
@pytest.mark.parametrize("name", ["knorm", "snapkv", "tova", "observed_attention"])
def test_guesses_are_neither_observers_nor_kept(name, kind, every):
    """What is chosen where the prompt ends is what is chosen without guesses; later choices end at what is settled."""
    model = tiny_llama()
    more = {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {"assistant_model": tiny_llama(seed=1)}
    one = method(name, every=every)
    choices = watched(one)
    with steer.attach(model, one):
        model.generate(**repeating(), **OPTIONS)
        plain = list(choices)
        choices.clear()
        found = model.generate(**repeating(), **OPTIONS, **more)
    assert found.shape[1] == 22 + NEW
    for (seen, keep), (other, alone) in zip(choices[:3], plain[:3], strict=True):
        torch.testing.assert_close(seen.query, other.query)
        assert torch.equal(keep, alone)
    assert (len(choices) > 3) == (every is not None)
    for seen, _ in choices:
        assert int(seen.slots.max()) == int(seen.query_slots[-1])
        assert seen.query.shape[2] == seen.query_slots.numel()


class Bad(hf.LogitsProcessor):
    """Always writes the same token."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -1e9).index_fill_(1, torch.tensor([7]), 0.0)


def test_text_after_rejected_guesses_equals_a_mask():
    """All guesses are wrong, so all that is written follows from the pruned prompt."""
    model = tiny_llama()
    one = method("snapkv")
    choices = watched(one)
    options = {**GREEDY, "logits_processor": hf.LogitsProcessorList([Bad()])}
    with steer.attach(model, one):
        found = model.generate(**repeating(), **options, prompt_lookup_num_tokens=3)
    assert found.sequences[0, 22:].tolist() == [7] * 5
    cache = model(**repeating(), use_cache=True).past_key_values
    with hidden(model, {seen.layer: ~keep for seen, keep in choices}, 8):
        truth = [model(input_ids=torch.tensor([[7]]), past_key_values=cache).logits[:, -1] for _ in range(4)]
    torch.testing.assert_close(torch.stack(found.logits[1:]), torch.stack(truth), **CLOSE)
    # the last forward's guesses may still be there
    assert all(layer.kept.width == int(22 * 0.4) for layer in found.past_key_values.layers)


@pytest.mark.parametrize("name", ["knorm", "tova", "streaming_llm"])
def test_a_prompt_in_chunks_is_chosen_from_whole(name):
    """Methods that need the last query or none choose as from one forward."""
    model = tiny_llama()
    one = method(name)
    choices = watched(one)
    with steer.attach(model, one):
        plain = model.generate(**repeating(), **OPTIONS)
        chunked = model.generate(**repeating(), **OPTIONS, prefill_chunk_size=7)
    assert torch.equal(plain, chunked)
    assert len(choices) == 6
    for (_, keep), (_, other) in zip(choices[:3], choices[3:], strict=True):
        assert torch.equal(keep, other)


def windowed(window: int = 6, kinds: tuple[str, ...] = WINDOWS * 2) -> PreTrainedModel:
    torch.manual_seed(0)
    config = hf.Gemma3TextConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=len(kinds),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=101,
        sliding_window=window,
        layer_types=list(kinds),
        initializer_range=0.2,
        query_pre_attn_scalar=8,
        attn_implementation="sdpa",
    )
    return hf.Gemma3ForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "ada_kv"])
def test_windowed_layers_keep_what_they_have(name):
    model, ids = windowed(), tokens(1, 16)
    one = method(name)
    choices = watched(one)
    with steer.attach(model, one):
        found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert [isinstance(layer, KeptLayer) for layer in found.past_key_values.layers] == [False, True] * 2
    first = model(input_ids=ids, use_cache=True)
    logits, cache = [first.logits[:, -1]], first.past_key_values
    with hidden(model, {seen.layer: ~keep for seen, keep in choices if keep is not None}, 4):
        for step in range(4):
            token = found.sequences[:, 16 + step : 17 + step]
            logits.append(model(input_ids=token, past_key_values=cache).logits[:, -1])
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(logits), **CLOSE)


def test_a_model_of_windowed_layers_only_is_reported():
    model, ids = windowed(kinds=("sliding_attention",) * 2), tokens(1, 16)
    with pytest.raises(steer.errors.NeverFiredError, match="knorm"):
        with steer.attach(model, method("knorm")):
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY)


def test_an_error_inside_a_session_leaves_the_model_as_it_was():
    model, ids = tiny_llama(), tokens(1, 14)
    plain = model(input_ids=ids).logits
    one = method("knorm")
    one.score = lambda seen: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError), steer.attach(model, one):
        model(input_ids=ids)
    assert torch.equal(model(input_ids=ids).logits, plain)
    with steer.attach(model, method("knorm")):
        model(input_ids=ids)


def test_keeping_everything_of_a_padded_batch_changes_no_bit():
    kind = FAMILIES["llava"]
    model, prompt = kind.model(), kind.prompt(9)
    row = {name: torch.nn.functional.pad(prompt[name], (3, 0)) for name in ("input_ids", "attention_mask")}
    plain = model.generate(**{**prompt, **row}, **GREEDY)
    for name in ("fastv", "snapkv", "ada_kv"):
        with steer.attach(model, method(name, keep=1.0)):
            found = model.generate(**{**prompt, **row}, **GREEDY)
        assert all(torch.equal(a, b) for a, b in zip(found.logits, plain.logits, strict=True))
