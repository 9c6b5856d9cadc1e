"""Laws of a cache of which some is kept, for any selection."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from steer import memory
from steer.memory import Kept, Memory, pick
from steer.memory._masks import at_slots
from tests.engine.helpers import HEADS, KV_HEADS, LAYERS, randn, tiny_llama, tokens

from .answers import CLOSE, Whole, pruned, question

ROWS, LENGTH = 2, 9


@functools.cache
def read(padding: tuple[int, ...]) -> tuple[nn.Module, Memory, dict[str, torch.Tensor]]:
    model = tiny_llama()
    context = question(ROWS, LENGTH, padding, seed=3)
    return model, Memory.empty(model).read(model, context), context


@st.composite
def selections(draw) -> torch.Tensor:
    """Any choice of every layer, row and head, bool (L, B, H_kv, S); at least the last key, which is never padding."""
    bits = draw(st.lists(st.integers(0, 2**LENGTH - 1), min_size=LAYERS * ROWS * KV_HEADS, max_size=12))
    keep = torch.tensor([[b >> i & 1 for i in range(LENGTH)] for b in bits]).bool()
    keep[:, -1] = True
    return keep.view(LAYERS, ROWS, KV_HEADS, LENGTH)


@settings(max_examples=40)
@given(selections(), st.sampled_from([(0, 0), (4, 0), (0, 2)]), st.sampled_from([(0, 0), (2, 0)]))
def test_any_selection_equals_a_mask(keep, before, after) -> None:
    model, whole, context = read(before)
    chosen = {layer: keep[layer] & whole.mask[:, None] for layer in range(LAYERS)}
    asked = question(ROWS, padding=after)
    truth = Whole(model, context, chosen).forward(asked)
    kept = pruned(whole, chosen).bind(model)
    found = model(**asked, past_key_values=kept).logits
    kept.unbind()
    real = asked["attention_mask"].bool()
    torch.testing.assert_close(found[real], truth[real], **CLOSE)


@settings(max_examples=25)
@given(selections(), selections())
def test_to_keep_twice_is_to_keep_what_both_keep(first, second) -> None:
    _, whole, _ = read((0, 0))
    twice = pruned(pruned(whole, dict(enumerate(first))), dict(enumerate(second)))
    once = pruned(whole, dict(enumerate(first & second)))
    for layer in range(LAYERS):
        one, other = twice.kept(layer), once.kept(layer)
        assert torch.equal(one.counts(), other.counts())
        for row in range(ROWS):
            for head in range(KV_HEADS):
                assert torch.equal(column(one, row, head), column(other, row, head))


def column(kept: Kept, row: int, head: int) -> torch.Tensor:
    """Keys, values and slots of one head, (n, d + d_v + 1)."""
    keys, values = kept.dense(None)
    slots = kept.slots.expand(kept.batch, kept.heads, -1)[row, head, :, None].to(keys.dtype)
    made = torch.cat([keys[row, head], values[row, head], slots], dim=-1)
    return made if kept.valid is None else made[kept.valid[row, head]]


@settings(max_examples=40)
@given(selections())
def test_nothing_is_stored_of_what_was_dropped(keep) -> None:
    _, whole, _ = read((0, 0))
    kept = pruned(whole, dict(enumerate(keep)))
    for layer in range(LAYERS):
        one = kept.kept(layer)
        count = int(keep[layer].sum())
        assert one.keys.numel() == one.values.numel() == count * 12
        assert stored(one.keys, one.values) == 2 * count * 12 * 4
        assert torch.equal(one.counts(), keep[layer].sum(-1))
        values = column(one, 1, 0)[:, 12:24]
        assert torch.equal(values, whole.kept(layer).values[1, 0][keep[layer, 1, 0]])


def stored(*tensors: torch.Tensor) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("kind", ["one set", "heads alike", "heads of one size", "ragged"])
def test_a_fresh_cache_holds_no_second_copy(kind) -> None:
    """What a memory of a tenth costs is a tenth, in the cache too, before and after a question."""
    length, few = 400, 40
    keys, values = randn(2, KV_HEADS, length, 64), randn(2, KV_HEADS, length, 64, seed=1)
    keep = torch.rand(2, KV_HEADS, length, generator=torch.Generator().manual_seed(0)).argsort(-1) < few
    if kind != "heads of one size":
        keep = torch.arange(length).expand_as(keep) < few
    if kind == "heads alike":
        keep = torch.stack([torch.arange(length) < few, torch.arange(length) >= length - few])[:, None].expand_as(keep)
    if kind == "ragged":
        keep = keep & ~((torch.arange(length) < 20) & torch.tensor([True, False])[:, None])
    kept = pick(keys, values, torch.arange(length)[None, None], keep)
    part = stored(kept.keys, kept.values)
    assert part == 2 * int(keep.sum()) * 64 * 4
    indices = kept.nbytes - part
    assert indices <= 2 * KV_HEADS * few * (8 + 8 + 1)
    layer = memory.KeptLayer(kept, length)
    assert stored(layer.keys, layer.values) == 0
    for rows in (torch.tensor([0, 0, 1]), torch.tensor([1])):
        layer.reorder_cache(rows[: layer.keys.shape[0]] if rows.numel() > 2 else rows)
        assert stored(layer.keys, layer.values) == 0
    layer.update(randn(1, KV_HEADS, 3, 64), randn(1, KV_HEADS, 3, 64))
    assert stored(layer.keys, layer.values) == 2 * KV_HEADS * 3 * 64 * 4
    layer.reset()
    assert stored(layer.keys, layer.values) == 0


@settings(max_examples=40)
@given(selections(), st.integers(1, 3), st.booleans(), st.booleans())
def test_a_layers_mask_is_the_columns_of_the_whole(keep, length, numbers, wide) -> None:
    """Written out entry by entry, for masks of truth values and of numbers, for one head or for all, or for none."""
    slots = torch.arange(LENGTH)[None, None]
    kept = pick(torch.zeros(ROWS, KV_HEADS, LENGTH, 1), torch.zeros(ROWS, KV_HEADS, LENGTH, 1), slots, keep[0])
    layer = memory.KeptLayer(kept, LENGTH)
    total = LENGTH + length
    shape = (ROWS, HEADS if wide else 1, length, total)
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(length)) < 0.7
    lowest = torch.finfo(torch.float32).min
    whole = torch.where(seen, torch.rand(shape), lowest) if numbers else seen
    found = layer.mask(whole, length, HEADS, ROWS).expand(ROWS, HEADS, length, -1)
    causal = layer.mask(None, length, HEADS, ROWS)
    group = HEADS // KV_HEADS
    for row in range(ROWS):
        for head in range(HEADS):
            own = keep[0, row, head // group].nonzero()[:, 0].tolist()
            columns = own + list(range(LENGTH, total))
            count = len(own)
            have = torch.cat([found[row, head, :, :count], found[row, head, :, kept.width :]], dim=-1)
            assert torch.equal(have, whole.expand(ROWS, HEADS, length, total)[row, head][:, columns])
            empty = found[row, head, :, count : kept.width]
            assert bool((empty == (lowest if numbers else False)).all())
            if causal is not None:
                for query in range(length):
                    shown = causal.expand(ROWS, HEADS, length, -1)[row, head, query]
                    assert shown[:count].all()
                    assert not shown[count : kept.width].any()
                    assert torch.equal(shown[kept.width :], torch.arange(length) <= query)
    assert (causal is None) == (length == 1 and kept.valid is None)


def test_a_block_mask_says_the_same_as_a_written_one() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    keep = torch.rand(ROWS, KV_HEADS, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.6
    keep[..., 0] = True
    zeros = torch.zeros(ROWS, KV_HEADS, LENGTH, 1)
    layer = memory.KeptLayer(pick(zeros, zeros, torch.arange(LENGTH)[None, None], keep), LENGTH)
    length, total = 3, LENGTH + 3
    whole = torch.rand(ROWS, 1, length, total, generator=torch.Generator().manual_seed(1)) < 0.7
    block = create_block_mask(lambda b, h, q, k: whole[b, 0, q, k], ROWS, None, length, total, device="cpu")
    found = at_slots(block, layer.slots(length), layer.valid(length), length, HEADS)
    truth = layer.mask(whole, length, HEADS, ROWS)
    where = torch.meshgrid(*(torch.arange(n) for n in truth.shape), indexing="ij")
    assert torch.equal(found.mask_mod(*where), truth)


def test_dropping_frees_what_the_model_read() -> None:
    model = tiny_llama()
    whole = Memory.empty(model).read(model, {"input_ids": tokens(1, 200, seed=3)})
    keep = torch.zeros(1, KV_HEADS, 200, dtype=torch.bool)
    keep[..., :10] = True
    kept = whole.keep(dict.fromkeys(range(LAYERS), keep))
    held = stored(*(t for layer in kept.layers for t in (layer.keys, layer.values)))
    assert held == LAYERS * 2 * KV_HEADS * 10 * 12 * 4
    assert kept.nbytes < 0.06 * whole.nbytes
    assert kept.share() == pytest.approx(dict.fromkeys(range(LAYERS), 0.05))
