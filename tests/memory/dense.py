"""The truth about a pruned cache: the whole cache, with the dropped keys hidden from every later query by a mask."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import steer


@contextmanager
def hidden(model: nn.Module, dropped: Mapping[int, torch.Tensor], heads: int) -> Iterator[None]:
    """Later queries do not see dropped keys: bool (B, H_kv, S) by layer. The mask is written out in full."""
    handles = []
    layers = steer.inspect(model).tower().layers
    for index, drop in dropped.items():
        module = model.get_submodule(layers[index].attention.path)
        names = list(inspect.signature(module.forward).parameters)

        def hook(module: nn.Module, args: Any, kwargs: Any, drop: torch.Tensor = drop, names: Any = names) -> Any:
            kwargs = dict(zip(names, args, strict=False)) | kwargs
            hidden_states = kwargs["hidden_states"]
            batch, length = hidden_states.shape[:2]
            cache = kwargs.get("past_key_values", kwargs.get("cache"))  # as transformers 5.24 calls it
            own = getattr(cache, "self_attention_cache", cache).layers[module.layer_idx]
            total = own.get_seq_length() + length
            lowest = torch.finfo(hidden_states.dtype).min
            scores = torch.zeros(batch, heads, length, total, dtype=hidden_states.dtype)
            future = torch.ones(length, total, dtype=torch.bool).triu(total - length + 1)
            scores = scores.masked_fill(future, lowest)
            given = kwargs.get("attention_mask")
            if given is not None:
                given = given if given.dtype != torch.bool else torch.where(given, 0.0, lowest)
                scores = scores + given
            per_head = drop.repeat_interleave(heads // drop.shape[1], dim=1)
            per_head = nn.functional.pad(per_head, (0, total - drop.shape[2]))[:, :, None]
            kwargs["attention_mask"] = scores.masked_fill(per_head, lowest).clamp_min(lowest)
            return (), kwargs

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
