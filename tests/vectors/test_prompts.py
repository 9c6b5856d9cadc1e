"""Prompts are what one would write by hand; batches, padding and answers change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import steer
from steer import fitting, prompts, sites
from steer.prompts import Prompt

from .subjects import SUBJECTS, last_logits, passing, subject, word_tokenizer


def some_prompts(examples, answered=False):
    """With no, one and two demonstrations, so that a batch of them is padded."""
    return [Prompt(examples[i], tuple(examples[i + 1 : i + 1 + i]), answered) for i in range(3)]


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_batch_is_what_one_writes_by_hand_padded_on_the_left(name, answered):
    one = subject(name)
    asked = some_prompts(one.examples, answered)
    batch = prompts.encode(one.model, one.processor, asked)
    alone = [one.by_hand(prompt) for prompt in asked]
    for row, truth in enumerate(alone):
        ids, length = truth["input_ids"][0], truth["input_ids"].shape[1]
        assert torch.equal(batch.inputs["input_ids"][row, -length:], ids)
        assert (
            batch.inputs["attention_mask"][row].tolist()
            == [0] * (batch.inputs["input_ids"].shape[1] - length) + [1] * length
        )
    if "pixel_values" in batch.inputs:
        assert torch.equal(batch.inputs["pixel_values"], torch.cat([truth["pixel_values"] for truth in alone]))
    assert (batch.answers is None) == answered


@pytest.mark.parametrize("name", SUBJECTS)
def test_states_are_what_a_hook_sees_at_the_last_token(name):
    one = subject(name)
    asked = some_prompts(one.examples)
    found = fitting.states(
        one.model, prompts.batches(one.model, one.processor, asked, batch_size=2), sites.resid_out([0, 1])
    )
    for layer in (0, 1):
        truth = [passing(one.layers[layer], one.model, one.by_hand(prompt))[0, -1] for prompt in asked]
        torch.testing.assert_close(found["resid_out", layer, "text", "self"], torch.stack(truth), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SUBJECTS)
def test_scores_are_the_probabilities_of_the_answers_alone(name):
    one = subject(name)
    asked = some_prompts(one.examples)
    scores = fitting.score(one.model, [prompts.encode(one.model, one.processor, asked)])
    for row, prompt in enumerate(asked):
        logits = last_logits(one.model, one.by_hand(prompt))
        wanted = one.by_hand(replace(prompt, answered=True))["input_ids"][0, -1]
        assert scores.log_prob[row] == pytest.approx(float(logits.log_softmax(-1)[wanted]), abs=1e-3)
        assert scores.right[row] == (logits.argmax() == wanted)
    assert torch.equal(scores.log_prob, scores.first_log_prob)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_answers_of_several_tokens_with_and_without_absolute_positions(name):
    """GPT-2 learns an embedding for each position: left padding must not move it."""
    model, tokenizer = subject("llama").model, word_tokenizer()
    if name == "gpt2":
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=101, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        model = GPT2LMHeadModel(config).eval()
    asked = [Prompt(steer.Example("w6", "w7 w8 w9")), Prompt(steer.Example("w10 w11 w12 w13", "w14"))]
    scores = fitting.score(model, [prompts.encode(model, tokenizer, asked)])
    for row, (question, answer) in enumerate([([6], [7, 8, 9]), ([10, 11, 12, 13], [14])]):
        ids = torch.tensor([[4, *question, 5, *answer]])
        with torch.no_grad():
            table = model(input_ids=ids).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
        each = table[range(len(answer)), answer]
        assert scores.log_prob[row] == pytest.approx(float(each.sum()), abs=1e-3)
        assert scores.first_log_prob[row] == pytest.approx(float(each[0]), abs=1e-3)
        assert bool(scores.right[row]) == bool((table.argmax(-1) == torch.tensor(answer)).all())


def test_right_means_that_generate_writes_it():
    one = subject("tiny-vlm")
    queries = steer.zoo.examples("plain:colour", "dev", n=24)
    asked = [Prompt(query) for query in queries]
    scores = fitting.score(one.model, prompts.batches(one.model, one.processor, asked))
    written = prompts.write(one.model, one.processor, asked, max_new_tokens=3)
    assert scores.right.tolist() == [said == query.answer for said, query in zip(written, queries, strict=True)]
    assert scores.accuracy > 0.5


def test_an_intervention_at_the_last_prompt_token_is_not_moved_by_the_answer():
    one = subject("llama")
    asked = [Prompt(steer.Example("w6", "w7 w8 w9")), Prompt(steer.Example("w10 w11 w12 w13", "w14"))]
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0))
    shift = steer.Intervention(sites.resid_out(1, positions=steer.positions.last_prompt()), steer.ops.Add(vector))
    batched = fitting.score(one.model, [prompts.encode(one.model, one.processor, asked)], shift)
    for row, (question, answer) in enumerate([([6], [7, 8, 9]), ([10, 11, 12, 13], [14])]):
        ids = torch.tensor([[4, *question, 5, *answer]])
        place = len(question) + 1

        def add(module, args, out, place=place):
            hidden = out[0] if isinstance(out, tuple) else out
            hidden = hidden.clone()
            hidden[:, place] += vector
            return hidden

        handle = one.layers[1].register_forward_hook(add)
        with torch.no_grad():
            table = one.model(input_ids=ids).logits[0, place:-1].log_softmax(-1)
        handle.remove()
        truth = float(table[range(len(answer)), answer].sum())
        assert batched.log_prob[row] == pytest.approx(truth, abs=1e-3)


def test_a_template_of_ones_own_and_the_space_before_the_answer():
    tokenizer = word_tokenizer()
    model = subject("llama").model
    shot, query = steer.Example("w6", "w7"), steer.Example("w8", "w9")
    batch = prompts.encode(model, tokenizer, [Prompt(query, (shot,))], template="w50 {question} w51 {answer} w52 ")
    assert batch.inputs["input_ids"].tolist() == [[50, 6, 51, 7, 52, 50, 8, 51]]
    assert batch.answers.tolist() == [[9]]


def test_chat_templates_close_past_turns_and_leave_the_answers_open():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w80 ' if m['role'] == 'user' else 'w81 ' }}{{ m['content'] }} w82 {% endfor %}"
        "{% if add_generation_prompt %}w81 {% endif %}"
    )
    shot, query = steer.Example("w6", "w7"), steer.Example("w8", "w9 w10")
    model = subject("llama").model
    batch = prompts.encode(model, tokenizer, [Prompt(query, (shot,))])
    assert batch.inputs["input_ids"].tolist() == [[80, 6, 82, 81, 7, 82, 80, 8, 82, 81]]
    assert batch.answers.tolist() == [[9, 10]]
    told = prompts.encode(model, tokenizer, [Prompt(query, (shot,), answered=True)])
    assert told.inputs["input_ids"].tolist() == [[80, 6, 82, 81, 7, 82, 80, 8, 82, 81, 9, 10]]


def test_drawing_is_seeded_and_a_query_never_demonstrates_itself():
    pool = [steer.Example(f"q{i}", f"a{i}") for i in range(6)]
    drawn = prompts.draw(pool, 15, 4, seed=3)
    assert drawn == prompts.draw(pool, 15, 4, seed=3) != prompts.draw(pool, 15, 4, seed=4)
    assert {prompt.query for prompt in drawn[:6]} == {prompt.query for prompt in drawn[6:12]} == set(pool)
    for prompt in drawn:
        assert len(set(prompt.shots)) == 4
        assert prompt.query not in prompt.shots
    assert all(len(prompt.shots) == 5 for prompt in prompts.draw(pool, 6, 99))
    shuffled = prompts.draw(pool, 15, 4, seed=3, shuffle_answers=True)
    for prompt in shuffled:
        assert {shot.answer[1:] for shot in prompt.shots} == {shot.question[1:] for shot in prompt.shots}
    assert any(shot.answer[1:] != shot.question[1:] for prompt in shuffled for shot in prompt.shots)
    kept, held = fitting.hold_out(pool, 0.25, seed=1)
    assert len(held) == 2
    assert {*kept, *held} == set(pool)


@pytest.mark.parametrize(
    "processor, asked, options, facts",
    [
        (None, [Prompt(steer.Example("w6"))], {}, ["without a processor"]),
        (word_tokenizer(), [Prompt(steer.Example("w6", images=("picture",)))], {}, ["without an image processor"]),
        (word_tokenizer(), [Prompt(steer.Example("w6"))], {"template": "{question}"}, ["{answer}", "'{question}'"]),
        (word_tokenizer(), [], {}, ["one prompt or more"]),
    ],
)
def test_errors_say_what_is_missing(processor, asked, options, facts):
    with pytest.raises(steer.SteerError) as error:
        prompts.encode(subject("llama").model, processor, asked, **options)
    for fact in facts:
        assert fact in str(error.value)


def test_scores_need_answers():
    one = subject("llama")
    with pytest.raises(steer.SteerError, match="answers"):
        fitting.score(one.model, [prompts.encode(one.model, one.processor, [Prompt(steer.Example("w6"))])])


def test_reading_leaves_the_model_in_the_mode_it_was_in():
    one = subject("llama")
    one.layers[1].mlp.train()
    before = [module.training for module in one.model.modules()]
    with torch.enable_grad():
        fitting.score(one.model, prompts.batches(one.model, one.processor, some_prompts(one.examples)))
    assert [module.training for module in one.model.modules()] == before
    one.model.eval()


def test_a_slice_of_batches_is_those_batches():
    one = subject("tiny-vlm")
    made = prompts.batches(one.model, one.processor, some_prompts(one.examples), batch_size=1)
    for batch, wanted in zip(made[1:], [made[1], made[2]], strict=True):
        assert all(torch.equal(batch.inputs[name], wanted.inputs[name]) for name in wanted.inputs)


def test_what_a_processor_cannot_take_is_one_error_that_names_it():
    one = subject("tiny-vlm")
    with pytest.raises(steer.SteerError, match=f"{type(one.processor).__name__} cannot make inputs"):
        prompts.encode(one.model, one.processor, [Prompt(steer.Example("what?", images=(object(),)))])


def test_no_question_has_no_answer_and_asks_nothing():
    assert steer.create("image_focus").answer(None, None, []) == []
