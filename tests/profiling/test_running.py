"""A profile's prompts, what a run that was broken off leaves, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import steer
from steer.errors import FileFormatError
from steer.profiling import patching, running, shares
from steer.profiling.checkpoint import NAME
from steer.prompts import Prompt
from tests.vectors.subjects import subject


def found(one=None, **options) -> steer.HeadMap:
    one = one or subject("qwen2_5_vl")
    given = {"samples": 5, "seed": 3, "batch_size": 12, "progress": False, **options}
    return steer.profile(one.model, one.processor, one.examples, **given)


def same(first: steer.HeadMap, second: steer.HeadMap) -> bool:
    assert first.measures == second.measures
    pairs = [
        (a[name], b[name])
        for a, b in ((first.values, second.values), (first.errors, second.errors))
        for name in first.measures
    ]
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in pairs)


# For each way to run, what is broken off: a module and its function that does the work.
WAYS = {
    "exact": ({"measures": ["indirect_effect", "ablation"]}, (patching, "effects"), 10),
    "gradient": (
        {"measures": ["indirect_effect", "ablation"], "gradient": True, "batch_size": 2},
        (patching, "first_order"),
        6,
    ),
    "attention": ({"measures": "attention"}, (shares, "shares"), 3),
    "means": ({"measures": "ablation", "batch_size": 2, "gradient": True}, (running.fitting, "states"), 3),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_broken_off_goes_on_bit_for_bit(way, tmp_path, monkeypatch):
    options, (module, name), total = WAYS[way]
    whole = found(**options)
    real, calls = getattr(module, name), []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) in (2, 3):
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            found(folder=tmp_path, **options)
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert same(found(folder=tmp_path, **options), whole)
    assert len(calls) == total + 2
    assert same(found(folder=tmp_path, **options), whole)
    assert len(calls) == total + 2  # a finished one is only read


def test_a_checkpoint_belongs_to_one_profile(tmp_path):
    base = {"measures": "attention", "samples": 2}
    fewer = steer.Demonstrations(tuple(subject("qwen2_5_vl").examples), 1, seed=3)
    found(folder=tmp_path, **base)
    for changed, named in (
        ({"measures": ["attention", "ablation"]}, "options"),
        ({"samples": 3}, "options, prompts"),
        ({"seed": 4}, "options, prompts"),
        ({"demonstrations": fewer}, "options, prompts"),
        ({"template": "{images}Q: {question}\nA: {answer}\n"}, "options"),
    ):
        with pytest.raises(steer.SteerError, match=f"another profile: {named}"):
            found(folder=tmp_path, **base | changed)
    model = subject("qwen2_5_vl").model
    weight = model.lm_head.weight
    kept = weight.clone()
    try:
        weight[0, 0] += 1
        with pytest.raises(steer.SteerError, match="another profile: weights"):
            found(folder=tmp_path, **base)
    finally:
        weight.copy_(kept)
    data = (tmp_path / NAME).read_bytes()
    for broken in (b"", data[:40], b"\xff" * 64):
        (tmp_path / NAME).write_bytes(broken)
        with pytest.raises(FileFormatError, match="damaged"):
            found(folder=tmp_path, **base)


@pytest.mark.parametrize("measures", ["ablation", "attention"])
def test_batches_change_nothing_but_rounding(measures):
    small, large = (found(measures=measures, batch_size=size, gradient=True) for size in (1, 64))
    for name in small.measures:
        torch.testing.assert_close(small.values[name], large.values[name], rtol=1e-4, atol=1e-6)


def test_nothing_of_the_model_is_changed():
    one = subject("llama")
    before = {name: (p.clone(), p.requires_grad, p.grad) for name, p in one.model.named_parameters()}
    one.model.requires_grad_(True)
    found(one, measures=["indirect_effect", "ablation", "attention"], gradient=True)
    assert all(p.requires_grad and p.grad is None for p in one.model.parameters())
    one.model.requires_grad_(False)
    assert all(torch.equal(p, before[name][0]) for name, p in one.model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in one.model.modules())


def test_shuffled_answers_are_dealt_to_the_same_questions():
    examples = [steer.Example(f"q{i}", f"a{i % 3}") for i in range(30)]
    clean = steer.Demonstrations(tuple(examples), 6).for_queries(examples)
    mixed = running._corrupted(clean, "shuffle", 0)
    moved = 0
    for before, after in zip(clean, mixed, strict=True):
        assert after.query == before.query
        assert [s.question for s in after.shots] == [s.question for s in before.shots]
        assert Counter(s.answer for s in after.shots) == Counter(s.answer for s in before.shots)
        moved += before != after
    assert moved > 25
    assert running._corrupted(clean, "shuffle", 0) == mixed
    assert running._corrupted(clean, "shuffle", 1) != mixed
    assert running._corrupted(clean, "remove", 0) == [Prompt(e) for e in examples]


def test_queries_are_drawn_without_repeats_and_not_shown_to_themselves(monkeypatch):
    one, seen = subject("llama"), []
    monkeypatch.setattr(running.Passes, "run", lambda self, progress: seen.append(self.clean))
    monkeypatch.setattr(running.Passes, "head_map", lambda self: None)
    for samples in (5, 5, 100):
        found(one, samples=samples, measures="ablation")
    assert seen[0] == seen[1]
    assert [len({prompt.query.question for prompt in clean}) for clean in seen] == [5, 5, 8]
    assert all(prompt.query not in prompt.shots and len(prompt.shots) == 4 for prompt in seen[2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"measures": "atention"}, "did you mean 'attention'"),
        ({"measures": []}, "no measure"),
        ({"corrupt": "removed"}, "did you mean 'remove'"),
        ({"scale": "logprob"}, "log_probability"),
        ({"samples": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"attention": "cross"}, "cross-attention"),
        ({"demonstrations": steer.Demonstrations((steer.Example("w6", "w7"),), 0)}, "2 demonstrations or more"),
    ],
)
def test_what_cannot_be_is_told(options, said):
    with pytest.raises(steer.SteerError, match=said):
        found(subject("llama"), **options)


def test_examples_need_answers_and_the_model_a_processor():
    one = subject("llama")
    with pytest.raises(steer.SteerError, match="has no answer"):
        steer.profile(one.model, one.processor, [steer.Example("w6")])
    with pytest.raises(steer.SteerError, match="needs the model's processor"):
        steer.profile(one.model, None, one.examples)


def test_one_sample_has_no_error_and_bare_queries_no_demonstrations():
    one = subject("llama")
    bare = steer.Demonstrations(tuple(one.examples), 0)
    got = found(one, measures=["attention", "ablation"], samples=1, demonstrations=bare)
    assert got.n == 1
    assert all(table.isnan().all() for table in got.errors.values())
    assert not got.values["attention_demonstrations"].any()
    assert torch.equal(got.values["attention_text"], torch.ones(3, 8))
