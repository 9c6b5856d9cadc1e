"""What is kept given the scores: counts, sinks, windows, ties, padding, an earlier memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steer
from steer.errors import InterventionError, MappingError, UnknownNameError
from steer.memory import Scorer, Seen
from tests.engine.families import FAMILIES

SCORERS = [name for name, info in steer.methods().items() if issubclass(info.cls, Scorer)]


@dataclass
class Told(Scorer):
    """Scores that a test wrote down."""

    name: ClassVar[str] = "told"
    paper: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    window: int = 0

    def newest(self) -> int:
        return self.window

    def score(self, seen: Seen) -> torch.Tensor:
        return seen.key[..., 0]


def shown(scores: torch.Tensor, real: torch.Tensor, since: int = 0) -> Seen:
    """A layer with these scores (B, H_kv, S), real tokens (B, S), and a memory up to column `since`."""
    slots, every = torch.arange(scores.shape[2]), real[:, None].expand(scores.shape)
    fresh = (slots >= since).expand(scores.shape)
    key = scores[..., None]
    return Seen(key, key, key, 1.0, slots[None, None], every, fresh, slots, real)


def by_hand(seen: Seen, method: Told) -> torch.Tensor:
    """The rule, one row and head at a time, by sorting plain Python."""
    keep = torch.zeros_like(seen.real)
    for b in range(keep.shape[0]):
        for h in range(keep.shape[1]):
            scores = seen.key[b, :, :, 0].mean(0) if not method.per_head else seen.key[b, h, :, 0]
            tokens = [i for i in range(keep.shape[2]) if seen.real[b, h, i]]
            free = [i for i in tokens if seen.fresh[b, h, i]]
            sinks = [i for i in tokens[: method.sinks] if i in free]
            newest = [i for i in free[len(free) - method.window :] if i not in sinks] if method.window else []
            share = len(free) * method.keep
            count = method.budget if method.budget is not None else max(1, math.floor(share + 1e-6))
            best = sorted((i for i in free if i not in sinks + newest), key=lambda i: (-float(scores[i]), i))
            order = sinks + newest[::-1] + best
            chosen = order[: max(count, len(sinks))]
            keep[b, h, [*chosen, *(i for i in tokens if i not in free)]] = True
    return keep


@st.composite
def cases(draw: Any) -> tuple[Seen, Told]:
    batch, heads, total = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 14))
    since = draw(st.integers(0, total - 2))
    drawn = st.lists(st.integers(-2, 2), min_size=batch * heads * total, max_size=batch * heads * total)
    scores = torch.tensor(draw(drawn)).float().view(batch, heads, total)
    padding = draw(st.lists(st.integers(0, total - 1), min_size=batch, max_size=batch))
    slots = torch.arange(total)
    left = draw(st.booleans())
    real = torch.stack([slots >= n if left else slots < total - n for n in padding])
    # padding may hold anything
    scores = scores.masked_fill(~real[:, None], draw(st.sampled_from([9.0, -9.0, 0.0])))
    method = Told(
        keep=draw(st.sampled_from([0.1, 0.29, 0.5, 0.7, 1.0])),
        budget=draw(st.one_of(st.none(), st.integers(1, 16))),
        sinks=draw(st.integers(0, 4)),
        per_head=draw(st.booleans()),
        window=draw(st.integers(0, 5)),
    )
    return shown(scores, real, since), method


@given(cases())
def test_what_is_kept_is_what_sorting_by_hand_keeps(case):
    seen, method = case
    found, true = method.choose(seen), by_hand(seen, method)
    if found is None:
        assert torch.equal(true, seen.real)
    else:
        assert torch.equal(found, true)


@given(cases(), st.sampled_from(["told", "ada"]))
def test_counts_sinks_and_padding(case, kind):
    """The laws, for one budget a head and for a budget that heads share."""
    seen, told = case
    method = told
    if kind == "ada":
        method = steer.create("ada_kv", scorer="knorm", keep=told.keep, budget=told.budget, sinks=told.sinks)
    found = method.choose(seen)
    if found is None:
        return
    free = seen.real & seen.fresh
    assert not bool((found & ~seen.real).any())
    assert bool(found[seen.real & ~seen.fresh].all())
    sinks = seen.real & (seen.real.cumsum(-1) <= method.sinks)
    assert bool(found[sinks].all())
    number = method.count(seen)[:, None].clamp(min=(sinks & free).sum(-1).amax(1, keepdim=True))
    wanted = torch.minimum(number.expand(free.shape[:2]), free.sum(-1))
    kept = (found & free).sum(-1)
    if kind == "ada":
        assert torch.equal(kept.sum(1), wanted.sum(1))
    else:
        assert torch.equal(kept, wanted)


def test_heads_of_a_memory_may_hold_different_slots():
    """One set for all heads is found slot by slot, not column by column."""
    slots = torch.tensor([[[0, 1, 4, 5, 6, 7], [0, 4, 5, 6, 7, 0]]])
    real = torch.ones(1, 2, 6, dtype=torch.bool)
    real[0, 1, 5] = False
    scores = torch.tensor([[[0, 0, 3.0, 0, 2, 0], [0, 0, 4.0, 0, 0, 9]]])
    key = scores[..., None]
    rows = torch.tensor([4, 5, 6, 7])
    seen = Seen(key, key, key, 1.0, slots, real, slots >= 4, rows, torch.ones(1, 4, dtype=torch.bool))
    seen.fresh[0, 1, 5] = False
    found = Told(keep=0.5, sinks=0, per_head=False).choose(seen)
    # means at slots 4 to 7: 1.5, 2, 1, 0
    assert found.tolist() == [[[True, True, True, True, False, False], [True, True, True, False, False, False]]]


def test_last_queries_are_the_last_real_ones():
    """Padding on the right: each row's mass is what its own real queries give."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 7, 3, generator=generator), torch.randn(2, 2, 7, 3, generator=generator)
    real = torch.ones(2, 7, dtype=torch.bool)
    real[1, 4:] = False
    slots = torch.arange(7)
    every = real[:, None].expand(2, 2, 7)
    seen = Seen(query, key, key, 0.5, slots[None, None], every, every, slots, real)
    found = seen.mass(2)
    alone = Seen(
        *(x[1:, :, :4] for x in (query, key, key)),
        0.5,
        slots[None, None, :4],
        every[1:, :, :4],
        every[1:, :, :4],
        slots[:4],
        real[1:, :4],
    )
    torch.testing.assert_close(found[1:, :, :4], alone.mass(2))
    assert bool((found[1, :, 4:] == 0).all())
    assert seen.watchers()[:, 0].tolist() == [[7, 6, 5, 4, 3, 2, 1], [4, 3, 2, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    "wrong", [{"keep": 0.0}, {"keep": 1.5}, {"budget": 0}, {"sinks": -1}, {"every": 0}], ids=lambda w: next(iter(w))
)
@pytest.mark.parametrize("name", SCORERS)
def test_options_that_make_no_sense_are_refused(name, wrong):
    with pytest.raises(InterventionError, match=next(iter(wrong))):
        steer.create(name, **wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("snapkv", {"kernel_size": 4}),
        ("snapkv", {"window": 0}),
        ("pyramidkv", {"beta": 0}),
        ("fastv", {"keep": 0.0}),
        ("fastv", {"start": -1}),
        ("ada_kv", {"safeguard": 2.0}),
        ("ada_kv", {"scorer": "ada_kv"}),
        ("ada_kv", {"scorer": "icv"}),
        ("ada_kv", {"options": {"sinks": 1}}),
    ],
)
def test_fields_of_their_own_are_checked(name, wrong):
    with pytest.raises(InterventionError):
        steer.create(name, **wrong)


def test_an_unknown_scorer_is_named():
    with pytest.raises(UnknownNameError, match="snapkv"):
        steer.create("ada_kv", scorer="snapkb")


@pytest.mark.parametrize("name", [*SCORERS, "fastv"])
def test_a_method_comes_back_from_a_folder(name, tmp_path):
    method = steer.create(name, keep=0.25)
    method.save_pretrained(tmp_path / "saved")
    assert steer.load(tmp_path / "saved") == method


def test_a_model_without_reachable_attention_is_refused():
    with pytest.raises(MappingError, match=r"steer\.memory\.prune"):
        steer.attach(FAMILIES["blip"].model("eager"), steer.create("knorm"))
