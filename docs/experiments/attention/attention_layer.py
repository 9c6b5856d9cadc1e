"""One layer's attention by itself: queries, keys and values in, what the output projection reads out."""

from __future__ import annotations

import torch
from attention_settings import DECODE, DTYPE, PREFILL, SEED, SHARE, TINY, Heads
from attention_turns import Case, Way
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from steer._scores import Call, add_bias
from steer_kernels import key_bias

CHECKED = 64  # last rows that are compared with fp64


class Layer(torch.nn.Module):
    """What an attention function reads of its module, and one call's tensors."""

    is_causal = True

    def __init__(self, size: Heads, queries: int, length: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_key_value_groups = size.heads // size.kv_heads
        self.scaling = size.head_dim**-0.5
        made = torch.Generator(device).manual_seed(SEED)
        normal = lambda *shape: torch.randn(*shape, device=device, generator=made)  # noqa: E731
        # (B, T, H, d) turned, as projections leave them
        self.query = normal(1, queries, size.heads, size.head_dim).to(dtype).transpose(1, 2)
        self.key, self.value = (
            normal(1, length, size.kv_heads, size.head_dim).to(dtype).transpose(1, 2) for _ in range(2)
        )
        # an addition of its own for every head and query, at the first keys: what a gate gives
        self.a = normal(1, size.heads, queries, 1)
        self.b = (torch.arange(length, device=device) < length // SHARE).float().view(1, 1, -1, 1)

    def attend(self, query=None, key=None, value=None, mask=None, width: int | None = None) -> torch.Tensor:  # type: ignore[no-untyped-def]
        """As transformers' SDPA does it, (B, T, H d)."""
        query, key, value = (x if given is None else given for x, given in self._given(query, key, value))
        out, _ = sdpa_attention_forward(self, query, key, value, mask, scaling=self.scaling)
        return self._flat(out[..., :width])

    def _given(self, *given):  # type: ignore[no-untyped-def]
        return zip((self.query, self.key, self.value), given, strict=True)

    def _flat(self, out: torch.Tensor) -> torch.Tensor:
        return out.reshape(*out.shape[:2], -1).contiguous()

    def steered(self) -> torch.Tensor:
        """What a session does inside attention."""
        call = Call(self.query, self.key, self.value, None, {"scaling": self.scaling}, "sdpa", True)
        extra = add_bias(call, [(self.a, self.b)])
        width = self.value.shape[-1] if extra else None
        return self.attend(call.query, call.key, call.value, call.mask, width)

    def column(self) -> torch.Tensor:
        """The bias as a column, whatever the number of queries."""
        extra = 8 if self.query.is_cuda else 1
        wide = key_bias(self.query, self.key, self.value, self.a, self.b, self.scaling, extra)
        return self.attend(*wide, width=self.value.shape[-1])

    def mask(self, future: torch.Tensor) -> torch.Tensor:
        """(1, H, T, S) of the scores' dtype, in one tensor of that size and no second one."""
        a, b = self.a.to(self.query.dtype), self.b.to(self.query.dtype)
        return (a * b.transpose(-1, -2)).masked_fill_(future, -torch.inf)

    def off(self, out: torch.Tensor) -> float:
        """The largest difference of the last rows from attention in fp64, as a share of the largest value."""
        rows, length = min(CHECKED, self.query.shape[2]), self.key.shape[2]
        key, value = (x.double().repeat_interleave(self.num_key_value_groups, 1) for x in (self.key, self.value))
        scores = self.query[:, :, -rows:].double() @ key.transpose(-1, -2) * self.scaling
        scores += self.a[:, :, -rows:].double() @ self.b.double().transpose(-1, -2)
        hidden = torch.ones(rows, length, dtype=torch.bool, device=out.device).triu(length - rows + 1)
        truth = self._flat((scores.masked_fill_(hidden, -torch.inf).softmax(-1) @ value).transpose(1, 2))
        return ((out[:, -rows:].double() - truth).abs().max() / truth.abs().max()).item()


def prefill(device: torch.device, dtype: str, length: int, quick: bool) -> Case:
    """Every way to bias a whole prompt's scores."""
    size = TINY if quick else PREFILL[device.type]
    layer = Layer(size, length, length, device, getattr(torch, dtype))
    future = torch.ones(length, length, dtype=torch.bool, device=device).triu_(1)
    kept: list[torch.Tensor] = []

    def with_kept() -> torch.Tensor:
        if not kept:
            kept.append(layer.mask(future))
        return layer.attend(mask=kept[0])

    bytes_of_mask = size.heads * length**2 * layer.query.itemsize
    ways = {
        "unsteered": Way(layer.attend),
        "ours": Way(layer.steered),
        "mask, made in the call": Way(lambda: layer.attend(mask=layer.mask(future))),
        "mask, made before": Way(with_kept, compiles=True, holds=bytes_of_mask),
    }
    if DTYPE[device.type] == dtype:  # compiled anew for every length: in one dtype only
        ways["flex_attention, compiled"] = _flex(layer, length)
    steered = [name for name in ways if name != "unsteered"]
    return Case(_sizes(size, dtype, length), device, ways, difference=dict.fromkeys(steered, layer.off))


def _flex(layer: Layer, length: int) -> Way:
    a, b = layer.a[0, :, :, 0].contiguous(), layer.b[0, 0, :, 0].contiguous()
    seen = create_block_mask(lambda _, h, i, j: i >= j, None, None, length, length, device=str(a.device))
    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> torch.Tensor:
        out = compiled(
            layer.query, layer.key, layer.value, score_mod=lambda s, _, h, i, j: s + a[h, i] * b[j],
            block_mask=seen, scale=layer.scaling, enable_gqa=True,
        )  # fmt: skip
        return layer._flat(out.transpose(1, 2))

    return Way(run, compiles=True)


def decode(device: torch.device, dtype: str, length: int, quick: bool) -> Case:
    """One query against so many keys."""
    size = TINY if quick else DECODE
    layer = Layer(size, 1, length, device, getattr(torch, dtype))
    zeros = torch.zeros(1, 1, 1, length, dtype=layer.query.dtype, device=device)
    ways = {
        "unsteered": Way(layer.attend),
        "unsteered, a mask of zeros": Way(lambda: layer.attend(mask=zeros)),
        "ours": Way(layer.steered),
        "ours, as a column": Way(layer.column),
    }
    difference = dict.fromkeys(("ours", "ours, as a column"), layer.off)
    return Case(_sizes(size, dtype, length), device, ways, difference=difference)


def _sizes(size: Heads, dtype: str, length: int) -> dict[str, object]:
    return {"length": length, "dtype": dtype, **vars(size)}
