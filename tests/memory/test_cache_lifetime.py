"""A model is what it was once nobody needs it for a memory; what cannot work says so."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import steer
from steer import memory, ops, sites
from steer.errors import FingerprintError, InterventionError, MappingError, SteerError
from steer.memory import Memory
from tests.engine.families import FAMILIES
from tests.engine.helpers import tiny_llama, tokens

from .answers import GREEDY, llama_with, logits, pruned, question, random_selection


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def bare(model: nn.Module, config: Any, ids: torch.Tensor, before: torch.Tensor) -> None:
    """Nothing of ours is left."""
    assert hooks(model) == 0
    assert "generate" not in model.__dict__
    assert not any("_steer" in name for module in model.modules() for name in vars(module))
    assert all(module.config is config for module in model.modules() if hasattr(module, "config"))
    assert torch.equal(logits(model.generate(ids, **GREEDY)), before)


def made(model: nn.Module, seed: int = 3) -> Memory:
    kept = Memory.empty(model).read(model, {"input_ids": tokens(1, 9, seed=seed)})
    return pruned(kept, random_selection(kept))


def unbind(model: nn.Module) -> None:
    kept = made(model).bind(model)
    model.generate(**question(1), past_key_values=kept, **GREEDY)
    kept.unbind()
    kept.unbind()


def collected(model: nn.Module) -> None:
    kept = made(model).bind(model)
    model.generate(**question(1), past_key_values=kept, **GREEDY)
    assert hooks(model)
    del kept
    gc.collect()


def left_by_an_error(model: nn.Module) -> None:
    kept = made(model)
    with pytest.raises(ZeroDivisionError), memory.masks(model):
        model(**question(1), past_key_values=kept.cache(model=model))
        raise ZeroDivisionError


def an_error_in_the_forward(model: nn.Module) -> None:
    kept = made(model).bind(model)
    broken = model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate(**question(1), past_key_values=kept, **GREEDY)
    with pytest.raises(ZeroDivisionError):
        model(**question(1), past_key_values=kept)
    broken.remove()
    kept.unbind()


def an_error_in_the_attention(model: nn.Module) -> None:
    kept = made(model).bind(model)
    broken = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**question(1), past_key_values=kept)
    broken.remove()
    kept.unbind()


def two_at_once(model: nn.Module) -> None:
    one, other = made(model).bind(model), made(model, seed=4).bind(model)
    first = logits(model.generate(**question(1), past_key_values=one, **GREEDY))
    second = logits(model.generate(**question(1), past_key_values=other, **GREEDY))
    assert not torch.equal(first, second)
    one.unbind()
    assert torch.equal(logits(model.generate(**question(1), past_key_values=other, **GREEDY)), second)
    other.unbind()


def bound_twice(model: nn.Module) -> None:
    kept = made(model)
    kept.bind(model).bind(model)
    assert kept.is_bound
    kept.unbind()
    assert not kept.is_bound


def read_and_pruned_only(model: nn.Module) -> None:
    kept = made(model)
    cache = model(input_ids=tokens(1, 6), use_cache=True).past_key_values
    memory.prune(model, cache, {0: torch.rand(1, 2, 6) < 2})
    assert kept.nbytes


@pytest.mark.parametrize(
    "use",
    [
        unbind,
        collected,
        left_by_an_error,
        an_error_in_the_forward,
        an_error_in_the_attention,
        two_at_once,
        bound_twice,
        read_and_pruned_only,
    ],
)
def test_the_model_is_what_it_was(use: Callable[[nn.Module], None]) -> None:
    model = tiny_llama()
    config, ids = model.config, tokens(1, 6)
    before = logits(model.generate(ids, **GREEDY))
    use(model)
    bare(model, config, ids, before)


@pytest.mark.parametrize("order", list(itertools.permutations("abcd"))[::3])
def test_sessions_and_memories_left_in_any_order(order) -> None:
    model = tiny_llama()
    config, ids = model.config, tokens(1, 6)
    before = logits(model.generate(ids, **GREEDY))
    one, other = made(model).bind(model), made(model, seed=4)
    session = steer.attach(model, steer.Intervention(sites.head_out(), ops.Scale(0.5)))
    session.__enter__()
    other.bind(model)
    within = memory.masks(model)
    within.__enter__()
    asked = question(1)
    steered = [logits(model.generate(**asked, past_key_values=m, **GREEDY)) for m in (one, other)]
    leave = {
        "a": one.unbind,
        "b": lambda: session.__exit__(None, None, None),
        "c": other.unbind,
        "d": lambda: within.__exit__(None, None, None),
    }
    left = ""
    for step in order:
        leave[step]()
        left += step
        for name, m, truth in (("a", one, steered[0]), ("c", other, steered[1])):
            if name in left:
                continue
            found = logits(model.generate(**asked, past_key_values=m, **GREEDY))
            assert torch.equal(found, truth) == ("b" not in left)
    bare(model, config, ids, before)


def test_a_memory_that_no_model_takes_says_so() -> None:
    model = tiny_llama()
    kept, asked = made(model), question(1)
    for call in (model.generate, model):
        with pytest.raises(InterventionError, match=r"memory\.bind"):
            call(**asked, past_key_values=kept)
    # the attribute is looked up before its arguments are made, so that it is bound too late
    with pytest.raises(InterventionError, match=r"memory\.bind"):
        model.generate(**asked, past_key_values=kept.bind(model), **GREEDY)
    kept.unbind()
    with pytest.raises(SteerError, match=r"masks\(model\)"):
        model(**asked, past_key_values=kept.cache(model=model))
    with pytest.raises(AttributeError):
        kept.length = 3
    for call in (kept.update, kept.get_mask_sizes, kept.get_query_offset):
        with pytest.raises(InterventionError, match=r"memory\.bind"):
            call()


def test_a_model_that_reads_in_an_encoder_has_no_memory() -> None:
    with pytest.raises(MappingError, match="reads its context in an encoder"):
        Memory.empty(FAMILIES["florence2"].model())


def test_a_cache_that_outlives_its_binding_says_so() -> None:
    model, kept, _ = llama_with(1)
    said = model.generate(**question(1), past_key_values=kept, **GREEDY)
    kept.unbind()
    with pytest.raises(SteerError, match=r"masks\(model\)"):
        model(input_ids=tokens(1, 2), past_key_values=said.past_key_values)
    with memory.masks(model):
        assert model(input_ids=tokens(1, 2), past_key_values=said.past_key_values).logits.isfinite().all()


@pytest.mark.parametrize(
    ("change", "named"), [({"num_hidden_layers": 2}, "layers"), ({"num_key_value_heads": 4}, "heads")]
)
def test_another_model(change, named) -> None:
    kept = made(tiny_llama())
    with pytest.raises(FingerprintError, match=named):
        kept.bind(tiny_llama(**change))
    assert not kept.is_bound


def test_questions_that_are_none() -> None:
    model, kept, _ = llama_with(1)
    nothing = torch.zeros(1, 0, dtype=torch.long)
    for call in (lambda **given: model.generate(**given, **GREEDY), model):
        with pytest.raises(InterventionError, match="one token or more"):
            call(input_ids=kept.tokens, past_key_values=kept)
        with pytest.raises(InterventionError, match="one token or more"):
            call(input_ids=nothing, past_key_values=kept)
        with pytest.raises(InterventionError, match="input_ids"):
            call(inputs_embeds=torch.zeros(1, 2, 64), past_key_values=kept)
    model, kept, _ = llama_with(2)
    with pytest.raises(InterventionError, match="multiple of 2"):
        model(**question(3), past_key_values=kept)


def test_selections_that_do_not_fit() -> None:
    model = tiny_llama()
    kept = Memory.empty(model).read(model, {"input_ids": tokens(1, 6)})
    for keep, said in (
        (torch.ones(1, 2, 5, dtype=torch.bool), r"\[1, 2, 6\]"),
        (torch.ones(1, 8, 6, dtype=torch.bool), r"\[1, 2, 6\]"),
        (torch.ones(1, 2, 6), "bool"),
        (torch.zeros(1, 2, 6, dtype=torch.bool), "at least one"),
    ):
        with pytest.raises(InterventionError, match=said):
            kept.keep({0: keep})
    with pytest.raises(InterventionError, match=r"\[7\]"):
        kept.keep({7: torch.ones(1, 2, 6, dtype=torch.bool)})


def test_a_model_lives_no_longer_for_a_memory_that_is_gone() -> None:
    import weakref

    model = tiny_llama()
    kept = made(model).bind(model)
    gone = weakref.ref(model)
    kept.unbind()
    del model
    gc.collect()
    assert gone() is None
    assert kept.nbytes
