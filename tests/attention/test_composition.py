"""Attention steering, in-context vectors and pruned caches at once: one sequence, one forward, written out by hand.

The truth knows no session, no cache and no batch: fp64 attention over the whole sequence in which dropped keys are
masked and scores changed, plain hooks that shift the residual stream, and tokens written one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import permutations
from typing import Any

import pytest
import torch

import steer
from steer import ops, sites
from tests.engine.families import FAMILIES, IMAGE, whole
from tests.engine.helpers import randn

from .by_hand import Dense, by_hand, greedy, hooked, mixed
from .test_image_focus import left_padded
from .test_vcd import distorted

NEW = 5
OPEN = {"do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
FAMILY = FAMILIES["llava"]
VECTORS, ALPHAS = randn(2, 32, seed=7), torch.tensor([0.9, -0.6])
BOOSTS = {
    "image_focus": (lambda: steer.create("image_focus", beta=1.4), {"beta": 1.4}),
    "pai": (lambda: steer.create("pai", alpha=0.8, gamma=1.0, first_layer=0), {"alpha": 0.8}),
}
"""Methods, and what they add to the scores."""


def by_norm(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """The shorter half of each head's keys."""
    return ranked(-key.double().norm(dim=-1), key.shape[2] // 2)


def by_window(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """The last two tokens and those that they attend to most: 6 of 10 in all, by scores to which nothing is added."""
    heads, length = query.shape[1:3]
    groups = heads // key.shape[1]
    scores = query.double() @ key.double().repeat_interleave(groups, 1).transpose(-1, -2) * scaling
    weights = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)[:, :, -2:]
    mass = weights.unflatten(1, (key.shape[1], groups)).mean((2, 3))
    mass[:, :, -2:] = torch.inf
    return ranked(mass, int(length * 0.6 + 1e-6))


def ranked(score: torch.Tensor, count: int) -> torch.Tensor:
    kept = torch.zeros(score.shape, dtype=torch.bool)
    return kept.scatter(-1, score.topk(count, dim=-1).indices, True)


RULES = {
    "knorm": (lambda: steer.create("knorm", keep=0.5, sinks=0), by_norm),
    "snapkv": (lambda: steer.create("snapkv", keep=0.6, sinks=0, window=2, kernel_size=1), by_window),
}


PAIRS = [(boost, rule) for boost in BOOSTS for rule in RULES]


def live() -> steer.Method:
    """A shift of every token after every layer."""
    method = steer.create("live")
    method.tensors = {"vector": VECTORS, "alpha": ALPHAS}
    return method


def shifted(layer: int, h: torch.Tensor) -> torch.Tensor:
    y = h + ALPHAS[layer] * VECTORS[layer]
    return y * h.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)


def reading(
    model: Any, inputs: dict[str, torch.Tensor], scores: dict[str, float], rule: Any, shift: Any = shifted
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits (1, T, V) of a whole sequence that begins with one prompt, everything by hand."""
    layers = list(model.model.language_model.layers)

    def logits(sequence: torch.Tensor) -> torch.Tensor:
        dense = Dense(sequence == IMAGE, inputs["input_ids"].shape[1], keep=rule, **scores)
        with torch.no_grad(), by_hand(model, dense), hooked(layers, shift):
            return model(**whole(FAMILY, inputs, sequence)).logits

    return logits


def check(model: Any, sessions: list[list[Any]], inputs: dict[str, torch.Tensor], last: Any, first: Any = None) -> None:
    """What sessions one inside the other write, token by token and score by score, and all rows of the prompt."""
    wanted, scores = greedy(last, inputs["input_ids"], NEW)
    with ExitStack() as stack:
        for items in sessions:
            stack.enter_context(steer.attach(model, *items))
        got = model.generate(**inputs, max_new_tokens=NEW, **OPEN)
        with torch.no_grad():
            prefill = model(**inputs).logits
    assert torch.equal(got.sequences, wanted)
    found = torch.stack(got.logits, 1).double().log_softmax(-1)
    torch.testing.assert_close(found, scores.double().log_softmax(-1), atol=5e-3, rtol=2e-3)
    if first is not None:
        torch.testing.assert_close(prefill, first(inputs["input_ids"]), atol=1e-4, rtol=1e-4)


def three(boost: str, rule: str) -> list[Any]:
    return [BOOSTS[boost][0](), live(), RULES[rule][0]()]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(("boost", "rule"), PAIRS)
def test_all_three_at_once(boost, rule, implementation):
    model, inputs = FAMILY.model(implementation), FAMILY.prompt(seed=1)
    logits = reading(model, inputs, BOOSTS[boost][1], RULES[rule][1])
    check(model, [three(boost, rule)], inputs, lambda sequence: logits(sequence)[:, -1], logits)


@pytest.mark.parametrize("boost", BOOSTS)
def test_in_every_order(boost):
    """They act at different places, so that all orders are one."""
    model, inputs = FAMILY.model(), FAMILY.prompt(seed=1)
    logits = reading(model, inputs, BOOSTS[boost][1], by_norm)
    for items in permutations(three(boost, "knorm")):
        check(model, [list(items)], inputs, lambda sequence: logits(sequence)[:, -1], logits)


@pytest.mark.parametrize(("boost", "rule"), PAIRS)
def test_each_of_the_three_is_felt(boost, rule):
    """Without any of them the truth is another, so that none can be lost unseen."""
    model, inputs = FAMILY.model(), FAMILY.prompt(seed=1)
    scores, keep = BOOSTS[boost][1], RULES[rule][1]
    sequence, _ = greedy(lambda s: reading(model, inputs, scores, keep)(s)[:, -1], inputs["input_ids"], NEW)
    truth = reading(model, inputs, scores, keep)(sequence)[:, -NEW:]
    others = [
        reading(model, inputs, {}, keep), reading(model, inputs, scores, None),
        reading(model, inputs, scores, keep, lambda layer, h: h),
    ]  # fmt: skip
    for other in others:
        assert (other(sequence)[:, -NEW:] - truth).abs().amax(-1).min() > 5e-2


@pytest.mark.parametrize("boost", BOOSTS)
def test_sessions_one_inside_the_other_are_one_session(boost):
    model, inputs = FAMILY.model(), FAMILY.prompt(seed=2)
    logits = reading(model, inputs, BOOSTS[boost][1], by_norm)
    raised, vector, pruned = three(boost, "knorm")
    for sessions in ([[raised], [vector], [pruned]], [[pruned, raised], [vector]], [[vector], [pruned, raised]]):
        check(model, sessions, inputs, lambda sequence: logits(sequence)[:, -1], logits)


@pytest.mark.parametrize(("boost", "rule"), PAIRS)
def test_two_readings_around_all_three(boost, rule):
    """Each reading is steered, and prunes its own cache by its own keys."""
    model, inputs, vcd = FAMILY.model(), FAMILY.prompt(seed=1), steer.create("vcd")
    bad = {**inputs, "pixel_values": distorted(inputs["pixel_values"], "noise")}
    first, second = (reading(model, one, BOOSTS[boost][1], RULES[rule][1]) for one in (inputs, bad))

    def last(sequence: torch.Tensor) -> torch.Tensor:
        return mixed(first(sequence)[:, -1], second(sequence)[:, -1], 2.0, 0.1)

    items = three(boost, rule)
    for sessions in ([[vcd, *items]], [[*items, vcd]], [[vcd], items], [items, [vcd]]):
        check(model, sessions, inputs, last)


@pytest.mark.parametrize("rule", RULES)
def test_the_reading_without_pictures_prunes_what_it_sees(rule):
    """PAI whole: the second reading is the words alone, and a share of these stays."""
    model, inputs = FAMILY.model(), FAMILY.prompt(seed=1, words=9)
    words = inputs["input_ids"][inputs["input_ids"] != IMAGE][None]
    bare = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    method = steer.create("pai", alpha=0.8, gamma=1.6, first_layer=0)
    first = reading(model, inputs, {"alpha": 0.8}, RULES[rule][1])
    second = reading(model, bare, {}, RULES[rule][1])

    def last(sequence: torch.Tensor) -> torch.Tensor:
        return mixed(first(sequence)[:, -1], second(sequence[sequence != IMAGE][None])[:, -1], 1.6, 0.1)

    for items in ([method, live(), RULES[rule][0]()], [RULES[rule][0](), live(), method]):
        check(model, [items], inputs, last)


@pytest.mark.parametrize("around", [[], ["vcd"]], ids=["alone", "vcd"])
@pytest.mark.parametrize("boost", BOOSTS)
def test_a_padded_batch_and_beams_are_each_prompt_alone(boost, around):
    model, inputs = FAMILY.model(), left_padded("llava")
    items = [*three(boost, "knorm"), *map(steer.create, around)]
    given = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with steer.attach(model, items[0], *items[1:]):
        for beams in (1, 3):
            together = model.generate(**inputs, **given, num_beams=beams)
            for row, seed in enumerate((0, 1)):
                one = FAMILY.prompt(4 + row, seed)
                alone = model.generate(**one, **given, num_beams=beams)
                assert torch.equal(together[row, -NEW:], alone[0, -NEW:])


@pytest.mark.parametrize("nested", [False, True])
def test_what_acts_at_one_place_acts_in_the_order_attached(nested):
    """A shift and a factor do not commute; the bias and the pruning around them are the same either way."""
    model, inputs = FAMILY.model(), FAMILY.prompt(seed=1)
    factor = steer.Intervention(sites.resid_out(), ops.Scale(1.7))
    add = steer.Intervention(sites.resid_out(), ops.Add(VECTORS, ALPHAS))
    boost, keep = BOOSTS["pai"][0](), RULES["knorm"][0]()
    hands = {
        (0, 1): lambda layer, h: (h + ALPHAS[layer] * VECTORS[layer]) * 1.7,
        (1, 0): lambda layer, h: h * 1.7 + ALPHAS[layer] * VECTORS[layer],
    }
    for order, hand in hands.items():
        first, second = ([add], [factor]) if order == (0, 1) else ([factor], [add])
        logits = reading(model, inputs, {"alpha": 0.8}, by_norm, hand)
        sessions = [[boost, *first], [keep, *second]] if nested else [[boost, *first, keep, *second]]
        check(model, sessions, inputs, lambda sequence, logits=logits: logits(sequence)[:, -1], logits)
    truths = [reading(model, inputs, {"alpha": 0.8}, by_norm, hand)(inputs["input_ids"]) for hand in hands.values()]
    assert (truths[0] - truths[1]).abs().max() > 1e-2
