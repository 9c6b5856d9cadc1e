"""A small Llama: a prompt, or one token with a full cache, with every layer biased by a session."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from attention_settings import DECODE, MODEL_LAYERS, PREFILL, SEED, SHARE, TINY, Heads
from attention_turns import Case, Way
from transformers import DynamicCache, LlamaConfig, LlamaModel

import steer
from steer import ops, positions, sites


def model_prefill(device: torch.device, dtype: str, length: int, quick: bool) -> Case:
    """A session, beside a mask that all layers share and that is made once a forward."""
    size = TINY if quick else PREFILL[device.type]
    model, value = _model(size, device, dtype), _value(size)
    ids = torch.randint(0, 100, (1, length), generator=torch.Generator().manual_seed(SEED)).to(device)
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu_(1)
    chosen = (torch.arange(length, device=device) < length // SHARE).to(model.dtype)
    at_heads = value.to(device, model.dtype).view(1, -1, 1, 1)

    def run(mask: torch.Tensor | None = None) -> torch.Tensor:
        return model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def masked() -> torch.Tensor:
        return run((at_heads * chosen.expand(length, -1)).masked_fill_(future, torch.finfo(model.dtype).min))

    session = lambda: _session(model, value, length)  # noqa: E731
    ways = {"unsteered": Way(run), "ours": Way(run, session), "mask, made once a forward": Way(masked)}
    with session():
        wanted = run()
    off = lambda found: ((found - wanted).abs().max() / wanted.abs().max()).item()  # noqa: E731
    difference = {"mask, made once a forward": off}
    return Case(_sizes(model, size, dtype, length), device, ways, difference=difference)


def model_decode(device: torch.device, dtype: str, length: int, quick: bool) -> Case:
    """One token; its cache is cropped again behind it."""
    size = TINY if quick else DECODE
    model, value = _model(size, device, dtype), _value(size)
    made = torch.Generator(device).manual_seed(SEED)
    cache = DynamicCache(config=model.config)
    for layer in range(MODEL_LAYERS):
        shape = (1, size.kv_heads, length, size.head_dim)
        keys = (torch.randn(shape, device=device, generator=made).to(model.dtype) for _ in range(2))
        cache.update(*keys, layer)
    token = torch.tensor([[5]], device=device)

    def run() -> torch.Tensor:
        out = model(input_ids=token, past_key_values=cache, use_cache=True).last_hidden_state
        cache.crop(-1)
        return out  # type: ignore[no-any-return]

    ways = {"unsteered": Way(run), "ours": Way(run, lambda: _session(model, value, length))}
    # a cropped cache frees what was there before the call: its memory is not the call's
    return Case(_sizes(model, size, dtype, length), device, ways, memory=False)


def _session(model: Any, value: torch.Tensor, length: int) -> AbstractContextManager[Any]:
    change = steer.Intervention(sites.key_bias(), ops.KeyBias(value, positions.span(0, length // SHARE)))
    return steer.attach(model, change, measure="none")


def _value(size: Heads) -> torch.Tensor:
    return torch.linspace(-1, 1.5, size.heads)


def _model(size: Heads, device: torch.device, dtype: str) -> Any:
    torch.manual_seed(SEED)
    width = size.heads * size.head_dim
    config = LlamaConfig(
        hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=MODEL_LAYERS, vocab_size=512,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, head_dim=size.head_dim,
        max_position_embeddings=32768, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        return LlamaModel(config).to(getattr(torch, dtype)).eval().requires_grad_(False)


def _sizes(model: Any, size: Heads, dtype: str, length: int) -> dict[str, object]:
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    return {"length": length, "dtype": dtype, **vars(size), "layers": layers, "width": width}
