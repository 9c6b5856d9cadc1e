"""A conditional shift against plain hooks on one prompt at a time, in every way a prompt can come by."""

from __future__ import annotations

from functools import cache

import pytest
import torch

import steer
from steer.errors import InterventionError, UnknownNameError
from steer.prompts import Prompt, encode
from tests.engine.helpers import randn, tiny_llama

from .gating import greedy, inputs_of, shift_of, state, steered, vector, written
from .subjects import SUBJECTS, Subject, subject, word_tokenizer

ROWS, COUNT = (0, 4, 2), 4


@cache
def scored(name: str, pool: str, similarity: str):
    """A fitted gate whose threshold splits the three prompts, and where it acts, as plain hooks say."""
    one = subject(name)
    method = steer.create("gate_threshold", layer=1, pool=pool, similarity=similarity).over(vector(one, 1))
    method.fit(one.model, one.processor, one.examples[:4], otherwise=one.examples[4:], batch_size=3)
    c = method.tensors["direction"].double()
    scores = []
    for index in ROWS:
        h = state(one, inputs_of(one, index), 1, pool)
        other = torch.tanh((h @ c) / (c @ c) * c) if similarity == "cast" else c
        scores.append(float(h @ other / (h.norm() * other.norm())))
    method.tensors["threshold"] = torch.tensor(sum(sorted(scores)[1:]) / 2)  # one acts
    method.tensors["below"] = torch.tensor(0.0)
    return one, method, [score > float(method.tensors["threshold"]) for score in scores]


def batch_of(one: Subject, rows=ROWS):
    return encode(one.model, one.processor, [Prompt(one.examples[i]) for i in rows])


@pytest.mark.parametrize(("pool", "similarity"), [("mean", "cast"), ("last", "cosine")])
@pytest.mark.parametrize("name", SUBJECTS)
def test_each_row_of_a_padded_batch_is_steered_as_its_own_prompt_decides(name, pool, similarity):
    one, method, acts = scored(name, pool, similarity)
    assert sum(acts) == 1
    with steer.attach(one.model, method):
        got = written(one, batch_of(one), COUNT)
    for index, act, row in zip(ROWS, acts, got, strict=True):
        assert row == greedy(one, inputs_of(one, index), [shift_of(method.wrapped()[0])] if act else [], COUNT)
    assert method.decide(one.model, one.processor, [one.examples[i] for i in ROWS], batch_size=2) == acts


@pytest.mark.parametrize("name", SUBJECTS)
def test_logits_are_those_of_hand_hooked_prompts(name):
    one, method, acts = scored(name, "mean", "cast")
    batch = batch_of(one)
    inputs, _ = steer._teacher_forcing.inputs_of(one.model, steer.prompts.Batch(batch.inputs))
    with steer.attach(one.model, method), torch.no_grad():
        got = one.model(**inputs).logits
    for row, (index, act) in enumerate(zip(ROWS, acts, strict=True)):
        alone = inputs_of(one, index)
        truth = steered(one, alone, [shift_of(method.wrapped()[0])] if act else [], alone["input_ids"].shape[1] - 1)
        torch.testing.assert_close(
            got[row, -len(truth) :][-1], truth[-1], rtol=1e-3, atol=1e-4 * float(truth.abs().max())
        )


@pytest.mark.parametrize("name", ["tiny-vlm", "llama"])
def test_beams_of_a_prompt_share_its_decision(name):
    one, method, acts = scored(name, "mean", "cast")
    beams = {"num_beams": 3, "num_return_sequences": 2}
    with steer.attach(one.model, method):
        got = written(one, batch_of(one), COUNT, **beams)
        alone = [written(one, batch_of(one, [i]), COUNT, **beams) for i in ROWS]
    assert got == [row for rows in alone for row in rows]
    plain = written(one, batch_of(one), COUNT, **beams)
    always = method.wrapped()[0]
    with steer.attach(one.model, always):
        full = written(one, batch_of(one), COUNT, **beams)
    for row, act in enumerate(acts):
        assert got[2 * row : 2 * row + 2] == (full if act else plain)[2 * row : 2 * row + 2]


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_the_answer_that_is_forced_does_not_change_the_decision(pool):
    one, method, acts = scored("llama", pool, "cast" if pool == "mean" else "cosine")
    prompts = [Prompt(one.examples[i]) for i in ROWS]
    shift = method.wrapped()[0]
    for answer in ("w7", "w9 w44 w50 w6"):
        given = [Prompt(steer.Example(p.query.question, answer)) for p in prompts]
        batches = [encode(one.model, one.processor, given)]
        got = steer.fitting.score(one.model, batches, method).log_prob
        plain, full = (steer.fitting.score(one.model, batches, *items).log_prob for items in ([], [shift]))
        torch.testing.assert_close(got, torch.where(torch.tensor(acts), full, plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_chosen_keep_every_bit(dtype):
    """Also where the shift has a gate of its own and keeps each row's length: ICV."""
    one = subject("llama")
    model = tiny_llama(pad_token_id=None, implementation="eager").to(dtype)
    icv = steer.create("icv", strength=0.5, layers=(1, 2))
    icv.tensors = {"directions": randn(3, 64)}
    method = scored("llama", "mean", "cast")[1]
    mine = steer.create("gate_threshold", layer=1).over(icv)
    mine.tensors |= {name: one for name, one in method.tensors.items() if not name.startswith("inner.")}
    batch, acts = batch_of(one), scored("llama", "mean", "cast")[2]
    with torch.no_grad():
        plain = model(**batch.inputs).logits
        with steer.attach(model, mine):
            got = model(**batch.inputs).logits
        with steer.attach(model, icv):
            full = model(**batch.inputs).logits
    if dtype is torch.float32:
        assert acts == [bool((a != b).any()) for a, b in zip(got, plain, strict=True)]
    for row in range(3):
        assert torch.equal(got[row], plain[row]) or torch.equal(got[row], full[row])


def test_sessions_in_a_row_nested_and_after_an_error_share_nothing():
    one, method, acts = scored("llama", "mean", "cast")
    second = steer.create("gate_threshold", layer=1).over(vector(one, 2, seed=7))
    second.tensors |= {name: x for name, x in method.tensors.items() if not name.startswith("inner.")}
    second.tensors["below"] = torch.tensor(1.0)
    first_shift, second_shift = shift_of(method.wrapped()[0]), shift_of(second.wrapped()[0])
    truth = [
        greedy(one, inputs_of(one, index), [first_shift if act else second_shift], COUNT)
        for index, act in zip(ROWS, acts, strict=True)
    ]
    with steer.attach(one.model, method):
        with pytest.raises(RuntimeError, match="on purpose"), steer.attach(one.model, second), _broken(one):
            written(one, batch_of(one), COUNT)
        with steer.attach(one.model, second):
            assert written(one, batch_of(one), COUNT) == truth
            assert [written(one, batch_of(one, [i]), COUNT)[0] for i in ROWS] == truth
            assert written(one, batch_of(one, ROWS[::-1]), COUNT) == truth[::-1]
    assert written(one, batch_of(one), COUNT) == [greedy(one, inputs_of(one, i), [], COUNT) for i in ROWS]


class _broken:
    """The last layer raises in its second forward, in the middle of a generation."""

    def __init__(self, one: Subject) -> None:
        self.module, self.calls = one.layers[2], 0

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_pre_hook(self.hook)

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def hook(self, module, args) -> None:
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("on purpose")


def test_without_a_cache_it_is_the_same():
    one, method, _ = scored("llama", "mean", "cast")
    with steer.attach(one.model, method):
        assert written(one, batch_of(one), COUNT, use_cache=False) == written(one, batch_of(one), COUNT)


def test_a_session_between_prompt_and_answer_is_refused():
    one, method, _ = scored("llama", "mean", "cast")
    ids = inputs_of(one, 0)["input_ids"]
    with torch.no_grad():
        past = one.model(ids, use_cache=True).past_key_values
        with pytest.raises(InterventionError, match="decided"), steer.attach(one.model, method, prompt_length=0):
            one.model(ids[:, -1:], past_key_values=past)


def planted(scale: float = 1.0, mirrored: bool = False):
    """A llama in whose embeddings the words from w50 on point one way, and the others nowhere or the other way."""
    model, tokenizer = tiny_llama(pad_token_id=None), word_tokenizer()
    direction = torch.nn.functional.normalize(randn(64, seed=11), dim=0)
    weight = model.get_input_embeddings().weight.data
    weight[50:90] += scale * direction
    if mirrored:
        weight[6:50] -= scale * direction
    generator = torch.Generator().manual_seed(1)

    def examples(low: int, high: int, count: int) -> list[steer.Example]:
        words = torch.randint(low, high, (count, 3), generator=generator).tolist()
        return [steer.Example(" ".join(f"w{i}" for i in row[: 1 + n % 3])) for n, row in enumerate(words)]

    return model, tokenizer, direction, examples


CASES = [("cast", "principal", False), ("cast", "mean_difference", False), ("cosine", "mean_difference", True)]


@pytest.mark.parametrize(("similarity", "direction", "mirrored"), CASES)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_planted_condition_is_found(similarity, direction, mirrored, swapped):
    model, tokenizer, planted_way, examples = planted(3.0, mirrored)
    inner = steer.create("icv", layers=(2,))
    inner.tensors = {"directions": randn(3, 64)}
    method = steer.create("gate_threshold", similarity=similarity, direction=direction).over(inner)
    sets = [examples(50, 90, 12), examples(6, 50, 12)]
    act, rest = sets[::-1] if swapped else sets
    method.fit(model, tokenizer, act, otherwise=rest, progress=False)
    assert float(method.tensors["f1"]) == 1.0
    assert int(method.tensors["layer"]) <= 2
    unseen = method.decide(model, tokenizer, [*examples(50, 90, 10), *examples(6, 50, 10)])
    assert unseen == [not swapped] * 10 + [swapped] * 10
    method.layer = 0
    method.fit(model, tokenizer, act, otherwise=rest, progress=False)
    assert abs(float(method.tensors["direction"] @ planted_way)) > 0.9


def test_a_threshold_that_is_given_is_kept():
    one = subject("llama")
    method = steer.create("gate_threshold", above=2.0).over(vector(one, 1))
    method.fit(one.model, one.processor, one.examples[:4], otherwise=one.examples[4:])
    assert float(method.tensors["threshold"]) == 2.0
    assert method.decide(one.model, one.processor, one.examples) == [False] * 8


def test_answer_writes_what_a_session_does():
    one, method, acts = scored("llama", "mean", "cast")
    got = method.answer(one.model, one.processor, [one.examples[i] for i in ROWS], max_new_tokens=COUNT)
    for index, act, words in zip(ROWS, acts, got, strict=True):
        tokens = greedy(one, inputs_of(one, index), [shift_of(method.wrapped()[0])] if act else [], COUNT)
        assert words == one.processor.decode(tokens, skip_special_tokens=True).strip()


def test_what_cannot_be_gated_is_refused_by_name():
    one = subject("llama")
    fit = {"otherwise": one.examples[4:], "progress": False}
    early = steer.create("gate_threshold", layer=2).over(vector(one, 1))
    with pytest.raises(InterventionError, match=r"layer 2.*layer 1"):
        early.fit(one.model, one.processor, one.examples[:4], **fit)
    for name in ("hificl",):
        inner = steer.create(name)
        inner.tensors = inner.initial(steer.inspect(one.model), torch.Generator())
        with pytest.raises(InterventionError, match="kv_prefix"):
            steer.create("gate_threshold").over(inner).fit(one.model, one.processor, one.examples[:4], **fit)
    with pytest.raises(steer.SteerError, match="wraps no method"):
        steer.create("gate_threshold").fit(one.model, one.processor, one.examples[:4], **fit)
    with pytest.raises(steer.SteerError, match=r"4 and 0"):
        steer.create("gate_threshold").over(vector(one, 1)).fit(one.model, one.processor, one.examples[:4])
    with pytest.raises(steer.SteerError, match="fitted first"):
        steer.attach(one.model, steer.create("gate_threshold").over(vector(one, 1)))
    with pytest.raises(UnknownNameError, match="cosine"):
        steer.create("gate_threshold", similarity="cosin")
    with pytest.raises(steer.SteerError, match="only methods"):
        steer.create("gate_threshold").over("icv")
