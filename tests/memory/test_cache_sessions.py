"""A session on a memory is the same session on the whole context; on a pruned one, with the others hidden by a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import steer
from steer import memory, ops, positions, sites
from steer.errors import MappingError, SessionError
from steer.memory import Memory
from tests.engine.families import FAMILIES
from tests.engine.helpers import randn, tiny_llama, tokens
from tests.engine.test_modes import KINDS, changes

from .answers import CLOSE, GREEDY, Whole, llama_with, logits, pruned, question, random_selection
from .test_memory import DECODERS, joined, parts

LOOSE = {"rtol": 1e-3, "atol": 1e-4}
# what acts on keys or on rows by their number, and so has to know where the kept keys stood
PLACED = {
    "bias on some of the context": lambda: steer.Intervention(
        sites.key_bias(), ops.KeyBias(1.3, positions.index(1, 2, 6, 11))
    ),
    "bias on some of the question": lambda: steer.Intervention(sites.key_bias(), ops.KeyBias(2.0, positions.index(15))),
    "bias on what is written": lambda: steer.Intervention(sites.key_bias(), ops.KeyBias(2.0, positions.generated())),
    "bias on the prompt, in two heads": lambda: steer.Intervention(
        sites.key_bias(heads=[1, 6]), ops.KeyBias(1.0, positions.prompt())
    ),
    "rows of the question": lambda: steer.Intervention(
        sites.resid_out(positions=positions.index(15, 16)), ops.Scale(0.3)
    ),
    "the last row of the prompt": lambda: steer.Intervention(
        sites.attn_out(positions=positions.last_prompt()), ops.Scale(0.3)
    ),
    "written rows": lambda: steer.Intervention(sites.resid_out(positions=positions.generated()), ops.Scale(0.5)),
    "queries": lambda: steer.Intervention(sites.head_q(), ops.Scale(0.6)),
    "prefix": lambda: steer.Intervention(sites.kv_prefix(), ops.Prefix(randn(2, 3, 12), randn(2, 3, 12, seed=1))),
}
KEYS = {
    "keys of some of the context": lambda: steer.Intervention(
        sites.head_k(positions=positions.index(1, 2, 6, 11)), ops.Scale(1.7)
    ),
    "values of the prompt": lambda: steer.Intervention(sites.head_v(positions=positions.prompt()), ops.Scale(0.5)),
    "keys of the question": lambda: steer.Intervention(
        sites.head_k(positions=positions.span(14, 17)), ops.Add(randn(2, 12))
    ),
}


def same_in_all_heads(keep: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    return {layer: k[:, :1].expand_as(k).clone() for layer, k in keep.items()}


def changed(model: nn.Module, kept: Memory, whole: Whole, use: Any, asked: dict[str, torch.Tensor]) -> None:
    """Logits of a session on the memory are the truth's, and not those without the session."""
    with steer.attach(model, use, strict=False):
        truth = whole.generate(asked)
        found = model.generate(**asked, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **LOOSE)
    bare = model.generate(**asked, past_key_values=kept, **GREEDY)
    assert (logits(bare) - logits(found)).abs().max() > 1e-3


@pytest.mark.parametrize("name", PLACED)
def test_what_was_kept_is_found_where_it_stood(name) -> None:
    model, kept, whole = llama_with(1, implementation="eager")
    changed(model, kept, whole, PLACED[name](), question(1))


@pytest.mark.parametrize("name", PLACED)
def test_the_same_in_a_batch_with_padding_on_both_sides(name) -> None:
    """Positions count real tokens, so that the same number is another slot in each row."""
    model, kept, whole = llama_with(2, length=17, padding=(3, 0))
    changed(model, kept, whole, PLACED[name](), question(2, padding=(0, 2)))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", KEYS)
def test_rows_of_keys(name, rows) -> None:
    """Heads that kept the same tokens: a row of keys is one position."""
    model = tiny_llama()
    context = question(rows, 14, (0, 3) if rows == 2 else (), seed=3)
    kept = Memory.empty(model).read(model, context)
    keep = same_in_all_heads(random_selection(kept))
    kept = pruned(kept, keep).bind(model)
    changed(model, kept, Whole(model, context, keep), KEYS[name](), question(rows))


def test_rows_of_keys_where_heads_kept_different_tokens() -> None:
    model, kept, whole = llama_with(1)
    changed(model, kept, whole, steer.Intervention(sites.head_k(), ops.Scale(1.7)), question(1))
    with steer.attach(model, KEYS["keys of some of the context"](), strict=False):
        with pytest.raises(MappingError, match="heads kept different tokens"):
            model(**question(1), past_key_values=kept)
    assert model(**question(1), past_key_values=kept).logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_intervention_on_a_pruned_memory(kind) -> None:
    model, kept, whole = llama_with(1)
    use = changes(model)[kind]
    asked = question(1)
    with steer.attach(model, *use, strict=False):
        truth = whole.generate(asked)
        found = model.generate(**asked, past_key_values=kept, **GREEDY)
        beams = model.generate(**asked, past_key_values=kept, num_beams=2, **GREEDY)
        true_beams = whole.generate(asked, num_beams=2)
    torch.testing.assert_close(logits(found), logits(truth), **LOOSE)
    assert torch.equal(beams.sequences, true_beams.sequences)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DECODERS)
def test_every_kind_of_intervention_on_every_family(name, kind) -> None:
    """Read and asked within the session, a memory of everything is the whole context."""
    family = FAMILIES[name]
    model = family.model()
    context, asked = parts(family, name)
    whole = joined([context, asked])
    if name == "mllama":
        whole["cross_attention_mask"] = torch.ones(*whole["input_ids"].shape, 1, 1, dtype=torch.long)
        asked["cross_attention_mask"] = torch.ones(*asked["input_ids"].shape, 1, 1, dtype=torch.long)
    use = changes(model)[kind]
    if kind == "prompt rows":
        # the last row of the context is the last of a prompt while it is read
        use = [one for one in use if one.site.positions is None or one.site.positions.kind != "last_prompt"]
    with steer.attach(model, *use, strict=False):
        truth = model.generate(**whole, **GREEDY)
        kept = Memory.empty(model).read(model, context).bind(model)
        found = model.generate(**asked, past_key_values=kept, **GREEDY)
    torch.testing.assert_close(logits(found), logits(truth), **LOOSE)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_pictures_of_the_memory_and_of_the_question_are_both_found(name) -> None:
    family = FAMILIES[name]
    model = family.model()
    context, asked = parts(family, name)
    ids = joined([context, asked])["input_ids"][0]
    where = positions.index(*(ids == 98).nonzero().flatten().tolist())
    kept = Memory.empty(model).read(model, context)
    kept = pruned(kept, random_selection(kept)).bind(model)
    both = []
    for keys in (positions.image(), where):
        # another prompt before: its pictures are not those of the memory
        with steer.attach(model, steer.Intervention(sites.key_bias(), ops.KeyBias(2.0, keys))):
            model.generate(**family.prompt(9, seed=5), **GREEDY)
            both.append(logits(model.generate(**asked, past_key_values=kept, **GREEDY)))
            both.append(model(**asked, past_key_values=kept).logits)
    assert torch.equal(both[0], both[2])
    assert torch.equal(both[1], both[3])


def test_a_plain_forward_on_a_memory_is_a_prompt() -> None:
    model, kept, whole = llama_with(1)
    asked = question(1)
    use = [
        steer.Intervention(sites.resid_out(0, positions=positions.last_prompt()), ops.Scale(0.3)),
        steer.Intervention(sites.resid_out(1, positions=positions.generated()), ops.Scale(0.1)),
        steer.Intervention(sites.resid_out(1, positions=positions.prompt()), ops.Scale(0.6)),
    ]
    with steer.attach(model, *use, strict=False, prompt_length=kept.length + 4):
        truth = whole.forward(asked)
    with steer.attach(model, *use, strict=False):
        model(input_ids=tokens(1, 6))
        found = model(**asked, past_key_values=kept).logits
    torch.testing.assert_close(found, truth, **LOOSE)


@pytest.mark.parametrize("rows", [1, 2])
def test_reading_in_a_session_that_prunes(rows) -> None:
    """Every part is chosen from where it ends; what an earlier part kept is given to the choice, and stays."""
    model = tiny_llama()
    mask = torch.ones(rows, 12, dtype=torch.long)
    if rows == 2:
        mask[0, :3] = 0
    ids = tokens(rows, 12, seed=3) * mask
    seen = []

    def odd(one: Any) -> torch.Tensor:
        seen.append((one.layer, one.fresh.clone(), one.slots.clone()))
        return one.real & (~one.fresh | (one.slots % 2 == 1).expand(one.real.shape))

    kept = Memory.empty(model)
    with steer.attach(model, steer.Intervention(sites.cache(), ops.Keep(odd))):
        for part, own in zip(ids.split(6, 1), mask.split(6, 1), strict=True):
            kept = kept.read(model, {"input_ids": part, "attention_mask": own})
    assert len(seen) == 6
    for layer in kept.places:
        slots = kept.kept(layer).slots_of(None).expand(rows, 2, -1)
        valid = kept.kept(layer).valid_of(None)
        for row in range(rows):
            want = [s for s in range(12) if s % 2 and mask[row, s]]
            have = slots[row, 0] if valid is None else slots[row, 0][valid[row, 0]]
            assert have.tolist() == want
    asked = question(rows)
    kept.bind(model)
    found = model.generate(**asked, past_key_values=kept, **GREEDY)
    # the second part read the first one's even slots hidden
    from .answers import heads_of
    from .dense import hidden

    drop = (torch.arange(6) % 2 == 0).expand(rows, 2, 6) | ~mask[:, None, :6].bool().expand(rows, 2, 6)
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    cache = model(input_ids=ids[:, :6], attention_mask=mask[:, :6], position_ids=places[:, :6]).past_key_values
    with hidden(model, dict.fromkeys(range(3), drop), heads_of(model, 0)):
        model(input_ids=ids[:, 6:], attention_mask=mask, position_ids=places[:, 6:], past_key_values=cache)
    drop = (torch.arange(12) % 2 == 0).expand(rows, 2, 12) | ~mask[:, None].bool().expand(rows, 2, 12)
    every = torch.cat([mask, asked["attention_mask"]], 1)
    with hidden(model, dict.fromkeys(range(3), drop), heads_of(model, 0)):
        truth = model.generate(
            torch.cat([ids, asked["input_ids"]], 1), attention_mask=every, past_key_values=cache, **GREEDY
        )
    torch.testing.assert_close(logits(found), logits(truth), **CLOSE)


def test_a_cache_of_which_nobody_knows_where_its_keys_stood() -> None:
    """Layers of one size run without help, but a position in them is no slot."""
    model = tiny_llama()
    whole = Memory.empty(model).read(model, {"input_ids": tokens(1, 8, seed=3)})
    keep = torch.tensor([True, False] * 4).expand(1, 2, 8)
    kept = whole.keep(dict.fromkeys(range(3), keep))
    ids, bias = tokens(1, 2), steer.Intervention(sites.key_bias(), ops.KeyBias(2.0, positions.index(4)))
    with memory.masks(model):
        plain = model(input_ids=ids, past_key_values=kept.cache(model=model)).logits
    torch.testing.assert_close(model(input_ids=ids, past_key_values=kept.cache()).logits, plain, **CLOSE)
    with steer.attach(model, bias, strict=False):
        with pytest.raises(SessionError, match=r"masks\(model\)"):
            model(input_ids=ids, past_key_values=kept.cache())
        unbound = model(input_ids=ids, past_key_values=whole.cache()).logits
        kept.bind(model)
        found = model(input_ids=ids, past_key_values=kept.cache()).logits
        assert not torch.allclose(found, plain)
        with memory.masks(model):
            torch.testing.assert_close(
                model(input_ids=ids, past_key_values=whole.cache(model=model)).logits, unbound, **CLOSE
            )
