"""Answers, probabilities and tokens are those of a loop by hand; a run that was cut off goes on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import steer
from steer.errors import FileFormatError, SteerError
from steer.suites import Question, chair, pope
from steer.suites._first_token import choice_tokens
from tests.suites.made import pope_files

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded():
    return steer.zoo.load()


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pope")
    return pope.load(pope_files(folder, n=4), folder / "images")


@pytest.fixture(scope="module")
def pool():
    return steer.zoo.examples("plain:exists", "demo", 12)


def by_hand(model, processor, question, *items, length=8):
    """Text, p_yes, mass and tokens of one question, through plain `generate`."""
    batch = steer.prompts.encode(model, processor, [steer.prompts.Prompt(question.example)])
    with steer.attach(model, *items):
        out = model.generate(
            **batch.inputs, max_new_tokens=length, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    new = out.sequences[0, batch.inputs["input_ids"].shape[1] :].tolist()
    chances = out.logits[0][0].double().softmax(-1)
    yes, no = (float(chances[processor.tokenizer.convert_tokens_to_ids(word)]) for word in ("yes", "no"))
    end = model.generation_config.eos_token_id
    tokens = new.index(end) + 1 if end in new else len(new)
    text = processor.decode(new, skip_special_tokens=True).strip()
    return text, yes / (yes + no), yes + no, tokens


@pytest.mark.parametrize("steered", [False, True])
def test_answers_are_those_of_generate(loaded, questions, steered):
    model, processor = loaded
    method = steer.create("image_focus", beta=3.0) if steered else None
    found = pope.ask(model, processor, questions, method, batch_size=5)
    assert [one.key for one in found] == [one.key for one in questions]
    for question, answer in zip(questions, found, strict=True):
        text, p_yes, mass, tokens = by_hand(model, processor, question, *([] if method is None else [method]))
        assert (answer.text, answer.tokens) == (text, tokens)
        assert answer.p_yes == pytest.approx(p_yes, abs=1e-5)
        assert answer.mass == pytest.approx(mass, abs=1e-5)
        assert answer.ms > 0
    assert len({one.p_yes for one in found}) > 4
    assert "generate" not in vars(model)


def test_steering_changes_the_probabilities(loaded, questions):
    alone, steered = (
        pope.ask(*loaded, questions[:2], method) for method in (None, steer.create("image_focus", beta=3.0))
    )
    assert abs(alone[0].p_yes - steered[0].p_yes) > 1e-4


def test_free_text_has_tokens_and_no_probability(loaded, questions):
    asked = [Question(one.key, "g", steer.Example("what is it?", images=one.example.images), "x") for one in questions]
    found = chair.ask(*loaded, asked[:3], max_new_tokens=4)
    for question, answer in zip(asked, found, strict=False):
        assert (answer.text, answer.p_yes, answer.mass) == (by_hand(*loaded, question)[0], None, None)
        assert answer.text
        assert answer.tokens == 2


def test_a_method_that_does_not_write_has_no_probabilities(loaded, questions, pool):
    method = steer.create("savs").fit(*loaded, pool)
    found = pope.ask(*loaded, questions[:3], method)
    assert [one.text for one in found] == method.answer(*loaded, [one.example for one in questions[:3]])
    assert [(one.p_yes, one.tokens) for one in found] == [(None, None)] * 3


def test_a_wording_stands_around_the_question(loaded, questions):
    (found,) = pope.ask(*loaded, questions[:1], wording="? {question} {question}")
    words = questions[0].example.question
    expected = by_hand(
        *loaded, replace(questions[0], example=replace(questions[0].example, question=f"? {words} {words}"))
    )
    assert found.p_yes == pytest.approx(expected[1], abs=1e-5)
    with pytest.raises(SteerError, match=r"'look' has no place .*\{question\}"):
        pope.ask(*loaded, questions[:1], wording="look")


class Tokenizer:
    """Words by the beginnings that a dictionary has."""

    unk_token_id = 0

    def __init__(self, words):
        self.words = words

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": self.words.get(text, [0])}


@pytest.mark.parametrize(
    "words, tokens",
    [
        ({"yes": [1], "no": [2]}, ([1], [2])),
        ({"Yes": [1], " Yes": [3], "No": [2], "NO": [9, 8]}, ([1, 3], [2])),
        ({"yes": [7, 1], "no": [7, 2], " yes": [3], " no": [4]}, ([3], [4])),
        ({"yes": [7], "Yes": [3], "no": [7], "No": [4]}, ([3], [4])),
        ({"yes": [5, 6], "no": [8, 6]}, ([5], [8])),
    ],
)
def test_the_tokens_that_answers_begin_with(words, tokens):
    assert choice_tokens(Tokenizer(words), ("yes", "no")) == tokens


def test_a_tokenizer_that_cannot_tell_the_answers_apart_is_refused():
    with pytest.raises(SteerError, match="'yes'"):
        choice_tokens(Tokenizer({"yes": [7, 1], "no": [7, 2]}), ("yes", "no"))
    with pytest.raises(SteerError, match="processor"):
        choice_tokens(None, ("yes", "no"))


def test_a_run_that_was_cut_off_goes_on(loaded, questions, tmp_path, monkeypatch):
    """Cut within a batch and within a line: whole batches are taken as they are, others asked again."""
    file = tmp_path / "kept" / "answers-0.jsonl"
    whole = pope.ask(*loaded, questions, batch_size=2, answers=tmp_path / "kept")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:20])
    asked = []
    monkeypatch.setattr("steer.suites._asking.write", count(asked))
    found = pope.ask(*loaded, questions, batch_size=2, answers=tmp_path / "kept")
    assert sum(map(len, asked)) == 1 + len(questions) - 2  # one more to warm up
    assert timeless(found) == timeless(whole)
    assert found[:2] == whole[:2]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["key"] for row in rows] == [one.key for one in questions[:3] + questions[2:]]
    assert rows[0]["question"] == questions[0].example.question
    asked.clear()
    assert pope.ask(*loaded, questions, batch_size=2, answers=tmp_path / "kept") == found
    assert not asked


def test_what_two_processes_kept_is_read_together(loaded, questions, tmp_path, monkeypatch):
    folder = tmp_path / "kept"
    whole = pope.ask(*loaded, questions, batch_size=2, answers=folder)
    lines = (folder / "answers-0.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers-0.jsonl").write_text("".join(lines[:2]))
    (folder / "answers-1.jsonl").write_text("".join(lines[2:]) + lines[0][:30])
    monkeypatch.setattr("steer.suites._asking.write", lambda *a, **k: pytest.fail("asked again"))
    assert pope.ask(*loaded, questions, batch_size=2, answers=folder) == whole


def timeless(answers):
    return [replace(one, ms=0.0) for one in answers]


def count(asked):
    from steer.prompts import write

    def counted(model, processor, prompts, **options):
        asked.append(prompts)
        return write(model, processor, prompts, **options)

    return counted


def test_one_folder_holds_many_ways(loaded, questions, tmp_path):
    model, processor = loaded
    two = questions[:2]

    def lines():
        return len((tmp_path / "answers-0.jsonl").read_text().splitlines())

    pope.ask(model, processor, two, answers=tmp_path)
    assert lines() == 2
    pope.ask(model, processor, two, steer.create("image_focus", beta=3.0), answers=tmp_path)
    pope.ask(model, processor, two, steer.create("image_focus", beta=2.0), answers=tmp_path)
    pope.ask(model, processor, two, wording="? {question}", answers=tmp_path)
    pope.ask(model, processor, two, max_new_tokens=2, answers=tmp_path)
    assert lines() == 10
    pope.ask(model, processor, two, steer.create("image_focus", beta=2.0), answers=tmp_path)
    assert lines() == 10


def test_another_model_and_other_data_are_refused_and_nothing_is_lost(loaded, questions, tmp_path):
    model, processor = loaded
    two, file = questions[:2], tmp_path / "answers-0.jsonl"
    pope.ask(model, processor, two, answers=tmp_path)
    before = file.read_bytes()
    # The same keys, but another question, another picture, another right answer.
    for other in (questions[1].example, questions[2].example, replace(two[0].example, answer="no")):
        with pytest.raises(SteerError, match=r"answers-0\.jsonl:1 .*another question 'pope_random/1'.*delete"):
            pope.ask(model, processor, [replace(two[0], example=other)], answers=tmp_path)
    weight = next(model.parameters())
    with torch.no_grad():
        kept = weight.clone()
        weight.add_(1e-3)
        try:
            with pytest.raises(SteerError, match=r"answers-0\.jsonl:1 .*another model.*delete"):
                pope.ask(model, processor, two, answers=tmp_path)
        finally:
            weight.copy_(kept)
    assert file.read_bytes() == before


DAMAGED = {"key": "a", "model": "m", "asked": "x", "how": "h"}


@pytest.mark.parametrize("line", ["[]", '{"key": "a"}', json.dumps(DAMAGED | {"how": 1}), "{", '{"key": "\xff"}'])
def test_a_folder_of_something_else_is_refused(loaded, questions, tmp_path, line):
    file = tmp_path / "answers-0.jsonl"
    file.write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(FileFormatError, match=r"answers-0\.jsonl:1"):
        pope.ask(*loaded, questions[:1], answers=tmp_path)
    assert file.read_bytes() == line.encode("latin-1") + b"\n"
    with pytest.raises(SteerError, match="is a file"):
        pope.ask(*loaded, questions[:1], answers=file)


@pytest.mark.parametrize("field, value", [("text", 1), ("ms", "soon"), ("tokens", 1.5), ("p_yes", True), ("mass", [])])
def test_a_damaged_value_is_refused(loaded, questions, tmp_path, field, value):
    pope.ask(*loaded, questions[:1], answers=tmp_path)
    file = tmp_path / "answers-0.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}) + "\n")
    with pytest.raises(FileFormatError, match=r"answers-0\.jsonl:1"):
        pope.ask(*loaded, questions[:1], answers=tmp_path)


def test_what_cannot_be_asked_is_said(loaded, questions):
    with pytest.raises(SteerError, match=r"2 questions have the key 'pope_random/1'"):
        pope.ask(*loaded, [questions[0], questions[0]])
    clip = steer.zoo.load("tiny-clip")
    with pytest.raises(SteerError, match="does not write text"):
        pope.ask(*clip, questions)
    assert pope.ask(*loaded, []) == []
