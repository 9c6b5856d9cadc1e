"""A cache is found under every name that a transformers gives it, an empty one too."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from steer._bench import tensors
from steer._caches import CACHES, cache_name, cache_of


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_is_found_by_its_name_although_it_is_empty(name) -> None:
    cache = DynamicCache()
    given = {**dict.fromkeys(CACHES), "hidden_states": torch.ones(1), name: cache}
    assert cache_of(given) is cache
    assert cache_name(given) == name


def test_a_call_without_a_cache_has_none() -> None:
    assert cache_of({"past_key_values": None, "cache_position": torch.arange(3)}) is None
    assert cache_name({}) is None


def test_an_output_has_its_cache_and_a_result_has_none_of_it() -> None:
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3), 0)
    hidden = torch.zeros(1, 2, 3)
    assert cache_of(BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)) is cache
    for name in ("past_key_values", "cache"):
        (only,) = tensors({"last_hidden_state": hidden, name: [(torch.ones(1), torch.ones(1))]})
        assert only is hidden
