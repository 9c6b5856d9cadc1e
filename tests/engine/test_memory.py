"""What a session keeps between forwards does not grow with the sequence."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

import steer
from steer import gates, ops, positions, sites

from .helpers import HEAD_DIM, HEADS, KV_HEADS, WIDTH, randn, tiny_llama, tokens

LENGTHS = (16, 240)
SHIFT = ops.Add(randn(WIDTH))
CASES = {
    "empty": list,
    "all": lambda: [steer.Intervention(sites.resid_out(), SHIFT)],
    "prompt": lambda: [steer.Intervention(sites.resid_out(positions=positions.prompt()), SHIFT)],
    "generated": lambda: [steer.Intervention(sites.resid_out(positions=positions.generated()), SHIFT)],
    "span": lambda: [steer.Intervention(sites.resid_out(positions=positions.span(2, 5)), SHIFT)],
    "last": lambda: [steer.Intervention(sites.logits(positions=positions.last_prompt()), ops.Scale(2.0))],
    "heads": lambda: [steer.Intervention(sites.head_out(heads=[1, 3]), ops.Scale(0.5))],
    "gated": lambda: [
        steer.Intervention(
            sites.head_out(), ops.Add(randn(HEADS, HEAD_DIM)), gates.Sigmoid(randn(HEADS, HEAD_DIM), minus_lse=True)
        )
    ],
    "bias": lambda: [steer.Intervention(sites.key_bias(), ops.KeyBias(1.0, positions.span(2, 5)))],
    "prefix": lambda: [
        steer.Intervention(sites.kv_prefix(), ops.Prefix(randn(KV_HEADS, 2, HEAD_DIM), randn(KV_HEADS, 2, HEAD_DIM)))
    ],
}


@pytest.fixture(autouse=True)
def only_what_comes_now() -> Iterator[None]:
    """The collector looks only at what a test makes, which is quick."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held() -> int:
    """Bytes of every tensor made in this test that is alive."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def kept(model, items, length: int, padded: bool) -> int:
    """Bytes that outlive a call of `generate` and a single forward inside an open session."""
    with torch.no_grad(), steer.attach(model, *items, strict=False):
        before = held()
        ids = tokens(2, length)
        mask = torch.ones_like(ids)
        if padded:
            mask[0, :3] = 0
        model.generate(ids, attention_mask=mask, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        model(ids, attention_mask=mask, use_cache=False)
        del ids, mask
        return held() - before


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_nothing_kept_grows_with_the_sequence(name, padded) -> None:
    model = tiny_llama()
    kept(model, CASES[name](), LENGTHS[0], padded)
    short, long = (kept(model, CASES[name](), length, padded) for length in LENGTHS)
    assert long == short


def test_a_long_generation_keeps_no_more_than_a_short_one() -> None:
    model, ids = tiny_llama(), tokens(2, 9)
    sizes = []
    for length in (4, 4, 60):
        with torch.no_grad(), steer.attach(model, steer.Intervention(sites.resid_out(), SHIFT)):
            before = held()
            model.generate(ids, max_new_tokens=length, min_new_tokens=length, do_sample=False)
            sizes.append(held() - before)
    assert sizes[2] == sizes[1]
