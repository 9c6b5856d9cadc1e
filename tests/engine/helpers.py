"""Small models and independent truths for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCAB = 3, 8, 2, 12, 64, 101


def tiny_llama(seed: int = 0, implementation: str = "sdpa", **changes: Any) -> LlamaForCausalLM:
    """A random Llama with grouped-query attention whose head_dim is not width / heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "hidden_size": WIDTH,
            "intermediate_size": 96,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "vocab_size": VOCAB,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
            "attn_implementation": implementation,
            **changes,
        }
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def tokens(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Random token ids, (B, T), none of them padding."""
    return torch.randint(2, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Reproducible normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def hand_hooked(
    model: nn.Module, hooks: list[tuple[nn.Module, Callable[..., Any], bool]], **inputs: Any
) -> torch.Tensor:
    """Logits under plain torch hooks, the truth for residual sites: (module, function of the tensor, on its input?)."""
    handles = []
    for module, function, on_input in hooks:
        if on_input:
            handles.append(module.register_forward_pre_hook(lambda m, a, f=function: (f(a[0]), *a[1:])))
        else:
            handles.append(module.register_forward_hook(_output_hook(function)))
    try:
        return model(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()


def _output_hook(function: Callable[..., Any]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)

    return hook


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    bias: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out in fp64: output (B, H, T, d_v) and log-sum-exp (B, H, T).

    `bias` is added to the scaled scores (B, H, T, S); `hidden` is true where a key may not be seen.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (t.double().repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * scaling
    if bias is not None:
        scores = scores + bias.double()
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)
