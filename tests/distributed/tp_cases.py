"""What is done to a model, by name: the same in one process and in each of two that share the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import steer
from steer import gates, ops, positions, sites

Make = Callable[[steer.ModelMap], list[steer.Intervention]]


def randn(*shape: int | None, seed: int = 0, scale: float = 0.5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale  # type: ignore


def of(model_map: steer.ModelMap) -> tuple[int, int, int, int, int, int]:
    """Layers, heads, KV heads, head width, value width, width of the text tower."""
    tower = model_map.tower("text")
    mixer = tower.layers[0].attention
    assert mixer is not None
    return len(tower.layers), mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, mixer.value_dim, tower.width  # type: ignore


def _one(make: Callable[..., steer.Intervention]) -> Make:
    return lambda model_map: [make(*of(model_map))]


def _mixing(x: torch.Tensor) -> torch.Tensor:
    """A function of all heads of (B, T, H, d): each gets what its neighbour and the mean hold."""
    return x.roll(1, dims=-2) + x.mean(-2, keepdim=True)


def _mixing_inner(x: torch.Tensor) -> torch.Tensor:
    return _mixing(x.transpose(1, 2)).transpose(1, 2)


@dataclass(frozen=True)
class OfAll:
    """A stranger's gate: one strength for all heads of a token, from what they ask for together."""

    needs_query: bool = True
    needs_lse: bool = True

    def bind(self, slot: Any) -> gates.BoundGate:
        def gate(x: torch.Tensor, reading: gates.Reading) -> torch.Tensor:
            assert reading.query is not None
            assert reading.lse is not None
            told = reading.query.norm(dim=-1) - reading.lse
            return torch.sigmoid(told.mean(-1, keepdim=True)).unsqueeze(-1).expand(*told.shape, 1)

        return gate


@dataclass(frozen=True)
class OfEach(OfAll):
    """A stranger's gate that treats each head by itself, and says so."""

    apart: ClassVar[bool] = True

    def bind(self, slot: Any) -> gates.BoundGate:
        def gate(x: torch.Tensor, reading: gates.Reading) -> torch.Tensor:
            assert reading.query is not None
            assert reading.lse is not None
            return torch.sigmoid(reading.query.norm(dim=-1) - reading.lse).unsqueeze(-1)

        return gate


I = steer.Intervention  # noqa: E741

CASES: dict[str, Make] = {
    "resid_out": _one(lambda L, H, K, d, v, D: I(sites.resid_out(), ops.Add(randn(L, D), keep_norm=True))),
    "resid_in cosine": _one(
        lambda L, H, K, d, v, D: I(sites.resid_in(), ops.Add(randn(D), relative=True), gates.Cosine())
    ),
    "attn_out": _one(lambda L, H, K, d, v, D: I(sites.attn_out(), ops.Add(randn(D)))),
    "mlp_out": _one(lambda L, H, K, d, v, D: I(sites.mlp_out(positions=positions.last_prompt()), ops.Add(randn(D)))),
    "logits": _one(lambda L, H, K, d, v, D: I(sites.logits(), ops.Scale(0.5))),
    "head_out per layer": _one(lambda L, H, K, d, v, D: I(sites.head_out(), ops.Add(randn(L, H, v)))),
    "head_out per head": _one(lambda L, H, K, d, v, D: I(sites.head_out(), ops.Add(randn(H, v), scale=randn(H)))),
    "head_out one vector": _one(lambda L, H, K, d, v, D: I(sites.head_out(heads=[1, H - 2]), ops.Replace(randn(v)))),
    "head_out mixed order": _one(
        lambda L, H, K, d, v, D: I(sites.head_out(heads=[H - 1, 0, 2]), ops.Add(randn(L, 3, v), keep_norm=True))
    ),
    "head_out first only": _one(lambda L, H, K, d, v, D: I(sites.head_out(heads=[1, 0]), ops.Add(randn(2, v)))),
    "head_out last only": _one(
        lambda L, H, K, d, v, D: I(sites.head_out(1, heads=H - 1), ops.Scale(randn(1)), name="last head")
    ),
    "head_out rotated": _one(
        lambda L, H, K, d, v, D: I(
            sites.head_out(positions=positions.span(2, 6)), ops.Rotate(randn(H, v), randn(H, v, seed=1), randn(H))
        )
    ),
    "gated": _one(
        lambda L, H, K, d, v, D: I(
            sites.head_out(),
            ops.Add(randn(L, H, v)),
            gates.Sigmoid(randn(L, H, d, seed=2), randn(L, H), minus_lse=True),
        )
    ),
    "gated some heads": _one(
        lambda L, H, K, d, v, D: I(
            sites.head_out(heads=[0, 3, H - 1]),
            ops.Add(randn(3, v)),
            gates.Sigmoid(randn(3, d, seed=2), layer_norm=True),
        )
    ),
    "gated scale": _one(
        lambda L, H, K, d, v, D: I(sites.head_out(heads=[H - 1, 2]), ops.Scale(0.1), gates.Sigmoid(randn(2, d)))
    ),
    "threshold": _one(lambda L, H, K, d, v, D: I(sites.head_out(), ops.Scale(0.0), gates.Threshold(randn(H, v)))),
    "given": _one(
        lambda L, H, K, d, v, D: I(sites.head_out(), ops.Add(randn(H, v)), gates.Given(torch.tensor([0.5, -1.0])))
    ),
    "head_q low rank": _one(
        lambda L, H, K, d, v, D: I(
            sites.head_q(),
            ops.LowRankQuery(randn(L, H, d, 2), randn(L, H, d, 2, seed=1)),
            gates.Sigmoid(randn(H, d, seed=2)),
        )
    ),
    "head_q some heads": _one(
        lambda L, H, K, d, v, D: I(
            sites.head_q(heads=[0, H - 1]), ops.LowRankQuery(randn(2, d, 2), randn(2, d, 2, seed=1))
        )
    ),
    "head_k": _one(lambda L, H, K, d, v, D: I(sites.head_k(), ops.Scale(randn(L, K)))),
    "head_k one head": _one(
        lambda L, H, K, d, v, D: I(sites.head_k(heads=K - 1, positions=positions.span(1, 4)), ops.Add(randn(d)))
    ),
    "head_v": _one(lambda L, H, K, d, v, D: I(sites.head_v(heads=[K - 1]), ops.Scale(0.3))),
    "key_bias": _one(
        lambda L, H, K, d, v, D: I(sites.key_bias(), ops.KeyBias(randn(L, H, scale=2), positions.span(2, 6)))
    ),
    "key_bias some heads": _one(
        lambda L, H, K, d, v, D: I(
            sites.key_bias(heads=[0, H - 1]),
            ops.KeyBias(1.5, positions.span(2, 6)),
            gates.Sigmoid(randn(H, d, seed=2), minus_lse=True),
        )
    ),
    "key_bias relative": _one(
        lambda L, H, K, d, v, D: I(
            sites.key_bias(positions=positions.last_prompt()),
            ops.KeyBias(randn(H), positions.span(2, 6), relative=True),
        )
    ),
    "kv_prefix": _one(
        lambda L, H, K, d, v, D: I(sites.kv_prefix(), ops.Prefix(randn(L, K, 3, d), randn(L, K, 3, v, seed=1)))
    ),
    "apply across heads": _one(lambda L, H, K, d, v, D: I(sites.head_out(), ops.Apply(_mixing))),
    "apply to some heads": _one(lambda L, H, K, d, v, D: I(sites.head_out(heads=[H - 1, 0, 3]), ops.Apply(_mixing))),
    "apply across queries": _one(lambda L, H, K, d, v, D: I(sites.head_q(), ops.Apply(_mixing_inner))),
    "apply across keys": _one(lambda L, H, K, d, v, D: I(sites.head_k(), ops.Apply(_mixing_inner))),
    "apply gated": _one(lambda L, H, K, d, v, D: I(sites.head_out(), ops.Apply(_mixing), gates.Sigmoid(randn(H, d)))),
    "a gate of all heads": _one(lambda L, H, K, d, v, D: I(sites.head_out(), ops.Add(randn(H, v)), OfAll())),
    "a gate of each head": _one(
        lambda L, H, K, d, v, D: I(sites.head_out(heads=[2, H - 1]), ops.Add(randn(2, v)), OfEach())
    ),
    "key_bias by all heads": _one(
        lambda L, H, K, d, v, D: I(sites.key_bias(), ops.KeyBias(2.0, positions.span(2, 6)), OfAll())
    ),
    "key_bias by each head": _one(
        lambda L, H, K, d, v, D: I(sites.key_bias(heads=[1]), ops.KeyBias(2.0, positions.span(2, 6)), OfEach())
    ),
    "each head keeps its own": lambda m: list(steer.create("knorm", keep=0.5, sinks=1).interventions(m)),
    "each head keeps so many": lambda m: list(steer.create("ada_kv", keep=0.5, sinks=1).interventions(m)),
    "cache": _one(lambda L, H, K, d, v, D: I(sites.cache(), ops.Apply(lambda k, w: (_mixing_inner(k), w.flip(1))))),
}


FEW = (
    "resid_out",
    "head_out mixed order",
    "gated",
    "head_q low rank",
    "head_k one head",
    "kv_prefix",
    "apply across heads",
)


def names_for(model: str) -> list[str]:
    """Every case on two kinds of model; on the others a few, of each kind of place one."""
    if model in ("llama", "qwen2_5_vl"):
        return list(CASES)
    return [name for name in FEW if not (model == "mqa" and name == "kv_prefix")]


def outcome(
    model: Any, inputs: dict[str, torch.Tensor], items: Any, steps: int = 4
) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Logits of the prompt, the scores and tokens of `generate`, and what the report counts."""
    with torch.no_grad(), steer.attach(model, *items, measure="none") as session:
        logits = model(**inputs).logits
        written = model.generate(
            **inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    found = {"logits": logits, "written": written.sequences, "steps": torch.stack(written.logits)}
    lines = [
        [one.site, one.layer, one.heads and list(one.heads), one.calls, one.rows] for one in session.report().lines
    ]
    return {name: tensor.contiguous() for name, tensor in found.items()}, lines


def gradient(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a vector on the residual stream, which is whole in every process."""
    width = of(steer.inspect(model))[-1]
    vector = randn(width).requires_grad_()
    model.requires_grad_(False)
    with steer.attach(model, I(sites.resid_out(1), ops.Add(vector), gates.Sigmoid(randn(width), of_query=False))):
        model(**inputs).logits.logsumexp(-1).sum().backward()
    assert vector.grad is not None
    return {"gradient": vector.grad}
