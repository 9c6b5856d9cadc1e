"""K5 through SDPA in whole models equals a (B, H, T, S) mask added by hand in eager ones, and makes no such tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM

import steer
import steer_kernels
from steer import ops, positions, sites
from steer_kernels.bench.peak import peak

from .helpers import HEAD_DIM, HEADS, KV_HEADS, VOCAB, dense_attention, randn, tiny_llama, tokens

LENGTH, FIRST_ROW, KEYS, ALPHA = 12, 3, (1, 5), 0.6
WINDOW = 4
VALUE = randn(HEADS, seed=7, scale=1.5)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "initializer_range": 0.2,
    "sliding_window": WINDOW,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def mistral(implementation: str) -> nn.Module:
    """Every layer sees a window of the last few keys."""
    return MistralForCausalLM(MistralConfig(**SIZES, attn_implementation=implementation))


def gemma3(implementation: str) -> nn.Module:
    """Windows and whole rows by turns, normed queries and keys, and a scaling that is not that of the heads' width."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**SIZES, layer_types=kinds, query_pre_attn_scalar=20, attn_implementation=implementation)
    )


FAMILIES: dict[str, Callable[[str], nn.Module]] = {
    "llama": lambda implementation: tiny_llama(implementation=implementation),
    "mistral": mistral,
    "gemma3": gemma3,
}


def build(family: str, implementation: str) -> Any:
    torch.manual_seed(0)
    return FAMILIES[family](implementation).eval().requires_grad_(False)


def batch(padded: int, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Two rows of tokens; the first is shorter by so many, on the left."""
    ids = tokens(2, length)
    mask = torch.ones_like(ids)
    mask[0, :padded], ids[0, :padded] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def bias(**kwargs: Any) -> steer.Intervention:
    """VALUE for queries from FIRST_ROW on, at the keys KEYS."""
    site = sites.key_bias(positions=positions.span(FIRST_ROW))
    return steer.Intervention(site, ops.KeyBias(VALUE, positions.span(*KEYS)), **kwargs)


def chosen(padded: int, total: int, rows: int, first_row: int = FIRST_ROW) -> torch.Tensor:
    """Bool (2 or 1, 1, rows, S): where one of the last `rows` queries that are chosen meets a chosen key."""
    at = torch.arange(total) - torch.tensor([padded, 0] if padded else [0])[:, None]
    queries, keys = at >= first_row, (at >= KEYS[0]) & (at < KEYS[1])
    return (queries[:, :, None] & keys[:, None, :])[:, None, total - rows :]


@contextmanager
def mask_by_hand(model: Any, padded: int) -> Iterator[None]:
    """An eager model whose every self-attention is given its mask plus VALUE at the chosen pairs."""

    def add(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"]
        pairs = chosen(padded, mask.shape[-1], mask.shape[-2])
        extra = VALUE.view(1, -1, 1, 1) * pairs
        return args, {**kwargs, "attention_mask": (mask + extra).clamp_min(torch.finfo(mask.dtype).min).to(mask.dtype)}

    attentions = [layer.self_attn for layer in model.model.layers]
    handles = [m.register_forward_pre_hook(add, with_kwargs=True) for m in attentions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("padded", [0, 4])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_prefill_and_decode_equal_a_mask_added_by_hand(family: str, padded: int) -> None:
    """Every logit of the prompt, and of tokens written with a cache, in fp32 to 1e-5."""
    model, inputs = build(family, "sdpa"), batch(padded)
    real = inputs["attention_mask"].bool()
    plain = model(**inputs).logits[real]
    with steer.attach(model, bias()):
        prompt = model(**inputs).logits
        written = model.generate(
            **inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    eager, whole = build(family, "eager"), written.sequences
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 4, dtype=torch.long)], 1)
    with mask_by_hand(eager, padded):
        truth = eager(input_ids=whole, attention_mask=mask).logits
    scale = truth.abs().max().item()
    torch.testing.assert_close(prompt[real], truth[:, :LENGTH][real], rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(torch.stack(written.logits, 1), truth[:, LENGTH - 1 : -1], rtol=1e-5, atol=1e-5 * scale)
    assert (prompt[real] - plain).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("relative", [False, True], ids=["constant", "relative"])
@pytest.mark.parametrize("padded", [0, 4])
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_layer_equals_attention_written_out(dtype, family: str, padded: int, relative: bool) -> None:
    """From the queries, keys and values that a layer had in the session, in fp64: 1e-5 in fp32, 2e-2 in bf16."""
    model, inputs = build(family, "sdpa").to(dtype), batch(padded)
    first_row = LENGTH - 5 if relative else FIRST_ROW
    op = ops.KeyBias(ALPHA if relative else VALUE, positions.span(*KEYS), relative=relative)
    change = steer.Intervention(sites.key_bias(positions=positions.span(first_row)), op)
    heard = [sites.head_q(), sites.head_k(), sites.head_v(), sites.head_out()]
    with steer.attach(model, change), steer.record(model, *heard) as acts:
        model(**inputs)
    real, pairs = inputs["attention_mask"].bool(), chosen(padded, LENGTH, LENGTH, first_row)
    i, j = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    for layer, block in enumerate(model.model.layers):
        q, k, v, got = (acts[site.name, layer] for site in heard)
        scaling = block.self_attn.scaling
        window = LENGTH if family == "llama" or (family == "gemma3" and layer == 1) else WINDOW
        hidden = ((j > i) | (j <= i - window)) | ~real[:, None, None, :]
        scores = q.double() @ k.double().repeat_interleave(HEADS // KV_HEADS, 1).transpose(-1, -2) * scaling
        added = ALPHA * scores.abs() if relative else VALUE.view(1, -1, 1, 1)
        truth, _ = dense_attention(q, k, v, scaling, added * pairs, hidden)
        bare, _ = dense_attention(q, k, v, scaling, hidden=hidden)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        truth, bare, got = truth.transpose(1, 2)[real], bare.transpose(1, 2)[real], got[real].double()
        torch.testing.assert_close(got, truth, rtol=tolerance, atol=tolerance)
        assert (truth - bare).abs().max() > 2 * tolerance * truth.abs().max()


@pytest.mark.parametrize("value", [-torch.inf, -1e4, 1e4])
def test_the_strongest_bias_fits_into_half_precision(value: float) -> None:
    """A wide head's column carries the bias over its scaling: 1e4 times 11 is more than fp16 holds."""
    model, inputs = tiny_llama(head_dim=128).half(), {"input_ids": tokens()}
    change = steer.Intervention(sites.key_bias(positions=positions.span(3)), ops.KeyBias(value, positions.span(1, 3)))
    heard = [sites.head_q(layers=0), sites.head_k(layers=0), sites.head_v(layers=0), sites.head_out(layers=0)]
    with steer.attach(model, change), steer.record(model, *heard) as acts:
        model(**inputs)
    q, k, v, got = (acts[site.name, 0] for site in heard)
    queries, keys = torch.arange(9)[:, None], torch.arange(9)[None]
    outside = (keys >= 1) & (keys < 3)
    hidden = (keys > queries) | ((queries >= 3) & (outside if value < 0 else ~outside))
    truth, _ = dense_attention(q, k, v, 128**-0.5, hidden=hidden)
    torch.testing.assert_close(got.double(), truth.transpose(1, 2), rtol=2e-3, atol=2e-3)


def test_at_one_query_it_is_a_mask_and_at_more_it_is_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """What SDPA is given: no mask and one wider q, k and v over the prompt; (B, H, 1, S) for a written token."""
    calls, attend = [], nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        mask = kwargs["attn_mask"]
        calls.append((query.shape[-1], key.shape[-1], value.shape[-1], None if mask is None else mask.numel()))
        return attend(query, key, value, **kwargs)

    model, inputs = build("llama", "sdpa"), batch(0)
    with steer.attach(model, bias()):
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    wide, one = HEAD_DIM + 1, HEAD_DIM
    assert calls[:3] == [(wide, wide, wide, None)] * 3
    assert calls[3:] == [(one, one, one, 2 * HEADS * (LENGTH + 1))] * 3


class Sizes(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return made


def largest(model: Any, inputs: dict[str, torch.Tensor], *changes: steer.Intervention) -> int:
    with steer.attach(model, *changes, measure="none"), Sizes() as sizes:
        model.model(**inputs)
    return sizes.largest


MEMORY_CHANGES = {
    "one value a head": lambda: [bias()],
    "two biases": lambda: [bias(), steer.Intervention(sites.key_bias(), ops.KeyBias(1.0, positions.span(6, 9)))],
    "relative, one row": lambda: [
        steer.Intervention(
            sites.key_bias(positions=positions.last_prompt()), ops.KeyBias(ALPHA, positions.span(*KEYS), relative=True)
        )
    ],
}


@pytest.mark.parametrize("change", sorted(MEMORY_CHANGES))
def test_no_tensor_of_queries_by_keys_is_made(change: str) -> None:
    """And one of all heads is, where the mask is added by hand."""
    length = 768
    inputs = {"input_ids": tokens(1, length)}
    assert largest(build("llama", "sdpa"), inputs, *MEMORY_CHANGES[change]()) < length * length
    eager = build("llama", "eager")
    with mask_by_hand(eager, 0), Sizes() as sizes:
        eager.model(**inputs)
    assert sizes.largest >= HEADS * length * length


@pytest.mark.parametrize(("family", "padded"), [("mistral", 0), ("gemma3", 0), ("llama", 5)])
def test_where_the_model_needs_a_mask_it_stays_the_largest(family: str, padded: int) -> None:
    """Windows and padding take transformers' own (B, 1, T, S) booleans; the bias adds nothing of that size."""
    inputs = batch(padded, 512)
    model = build(family, "sdpa")
    assert largest(model, inputs, bias()) == largest(model, inputs) < HEADS * 512 * 512


def bend(model: Any, *lengths: int) -> float:
    """How much more the second step of equal steps in T adds to the allocator's peak than the first."""
    given = [tokens(1, length) for length in lengths]
    low, middle, high = (peak(lambda ids: model.model(ids, use_cache=False), (ids,)) or 0 for ids in given)
    return (high - middle) / (middle - low)


def test_memory_grows_linearly_with_the_prompt() -> None:
    """The peak over a prefill is straight in T under the bias, and curved where the mask is made by hand."""
    fused, eager = build("llama", "sdpa"), build("llama", "eager")
    # Triton's interpreter makes tensors of its own
    with steer_kernels.prefer("torch"), steer.attach(fused, bias(), measure="none"):
        # SDPA's own scratch tiles, which do not grow any more, are the peak up to here
        assert bend(fused, 1536, 2048, 2560) == pytest.approx(1, abs=0.02)
    with mask_by_hand(eager, 0):
        assert bend(eager, 256, 512, 768) > 1.4
