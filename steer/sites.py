"""The places in a model where a tensor can be read or changed.

Each function here names one site and says which part of it is meant. Read the shapes as (B, T, ...): batch, rows of
this forward. Heads are counted as query heads, except at `head_k`, `head_v` and `kv_prefix`, which count KV heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import InterventionError, unknown_name
from .positions import Positions

Layers = Literal["all"] | int | Sequence[int]
Heads = Literal["all"] | int | Sequence[int]

WIDTH_SITES = ("embeddings", "resid_in", "resid_out", "attn_out", "mlp_out")
STREAM_SITES = ("token_embeddings", "features")
HEAD_SITES = ("head_q", "head_k", "head_v", "head_out")
ATTENTION_SITES = ("head_q", "head_k", "head_v", "key_bias", "kv_prefix")
NAMES = (*WIDTH_SITES, *STREAM_SITES, *HEAD_SITES, "attention", "key_bias", "kv_prefix", "cache", "logits", "call")


@dataclass(frozen=True)
class Site:
    """A place to read or write.

    Attributes:
        name: one of `steer.sites.NAMES`.
        layers: which layers of the tower; ignored where a site belongs to no layer.
        heads: which heads, at head sites.
        tower: `text`, `vision`, `audio`, `text_encoder`, `connector`, or a second one such as `vision_2`.
        positions: which rows; None for all.
        attention: `self`, or `cross` for the layer's cross-attention.
    """

    name: str
    layers: Layers = "all"
    heads: Heads = "all"
    tower: str = "text"
    positions: Positions | None = None
    attention: Literal["self", "cross"] = "self"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise unknown_name("site", self.name, NAMES)
        if self.attention not in ("self", "cross"):
            raise unknown_name("attention", self.attention, ("self", "cross"))
        if self.heads != "all" and self.name not in HEAD_SITES + ("attention", "key_bias", "kv_prefix"):
            raise InterventionError(f"site {self.name!r} has no heads; heads={self.heads!r} was asked for")
        if self.positions is not None and not isinstance(self.positions, Positions):
            raise InterventionError(f"positions must come from steer.positions, got {self.positions!r}")

    @property
    def has_heads(self) -> bool:
        """Whether heads can be chosen here."""
        return self.name in HEAD_SITES or self.name == "attention"


def embeddings(tower: str = "text", positions: Positions | None = None) -> Site:
    """Token or patch embeddings before the first layer, (B, T, D)."""
    return Site("embeddings", tower=tower, positions=positions)


def token_embeddings(positions: Positions | None = None) -> Site:
    """The words of a two-stream model's texts before positions are added, (B, T, D)."""
    return Site("token_embeddings", positions=positions)


def features(tower: str = "text") -> Site:
    """The feature of each text, or of each picture (`tower="vision"`), before it is normalised, (B, D)."""
    return Site("features", tower=tower)


def call() -> Site:
    """The model's own call: its arguments and its output."""
    return Site("call")


def resid_in(layers: Layers = "all", tower: str = "text", positions: Positions | None = None) -> Site:
    """The residual stream before a layer, (B, T, D)."""
    return Site("resid_in", layers, tower=tower, positions=positions)


def resid_out(layers: Layers = "all", tower: str = "text", positions: Positions | None = None) -> Site:
    """The residual stream after a layer, (B, T, D)."""
    return Site("resid_out", layers, tower=tower, positions=positions)


def attn_out(
    layers: Layers = "all",
    tower: str = "text",
    positions: Positions | None = None,
    attention: Literal["self", "cross"] = "self",
) -> Site:
    """What the attention branch adds to the residual stream, (B, T, D)."""
    return Site("attn_out", layers, tower=tower, positions=positions, attention=attention)


def mlp_out(layers: Layers = "all", tower: str = "text", positions: Positions | None = None) -> Site:
    """What the MLP branch adds to the residual stream, (B, T, D)."""
    return Site("mlp_out", layers, tower=tower, positions=positions)


def head_q(
    layers: Layers = "all",
    heads: Heads = "all",
    tower: str = "text",
    positions: Positions | None = None,
    attention: Literal["self", "cross"] = "self",
) -> Site:
    """Queries as attention uses them, after RoPE and norms, (B, H, T, d)."""
    return Site("head_q", layers, heads, tower, positions, attention)


def head_k(
    layers: Layers = "all",
    heads: Heads = "all",
    tower: str = "text",
    positions: Positions | None = None,
    attention: Literal["self", "cross"] = "self",
) -> Site:
    """Keys as attention uses them, the cached ones included, (B, H_kv, S, d)."""
    return Site("head_k", layers, heads, tower, positions, attention)


def head_v(
    layers: Layers = "all",
    heads: Heads = "all",
    tower: str = "text",
    positions: Positions | None = None,
    attention: Literal["self", "cross"] = "self",
) -> Site:
    """Values as attention uses them, the cached ones included, (B, H_kv, S, d_v)."""
    return Site("head_v", layers, heads, tower, positions, attention)


def head_out(
    layers: Layers = "all",
    heads: Heads = "all",
    tower: str = "text",
    positions: Positions | None = None,
    attention: Literal["self", "cross"] = "self",
) -> Site:
    """Each head's result, the input of the output projection, (B, T, H, d_v)."""
    return Site("head_out", layers, heads, tower, positions, attention)


def attention(
    layers: Layers = "all",
    heads: Heads = "all",
    tower: str = "text",
    positions: Positions | None = None,
    attention: Literal["self", "cross"] = "self",
) -> Site:
    """How much each query attends to each key, (B, H, R, S), for `steer.record` alone; `positions` are the queries.

    What is read is what the running attention function does after everything that is added to it in open sessions: keys
    that were put in front come first, and pruned ones are not there. A few rows cost little in
    SDPA and eager attention; all rows, or other functions, about S / d_v times the attention of the layer.
    """
    return Site("attention", layers, heads, tower, positions, attention)


def key_bias(
    layers: Layers = "all",
    heads: Heads = "all",
    tower: str = "text",
    positions: Positions | None = None,
    attention: Literal["self", "cross"] = "self",
) -> Site:
    """Scores before the softmax, (B, H, T, S); `positions` are the rows of the queries."""
    return Site("key_bias", layers, heads, tower, positions, attention)


def kv_prefix(layers: Layers = "all", tower: str = "text", attention: Literal["self", "cross"] = "self") -> Site:
    """Extra keys and values that every query sees, (H_kv, n, d) and (H_kv, n, d_v)."""
    return Site("kv_prefix", layers, "all", tower, None, attention)


def cache(layers: Layers = "all", attention: Literal["self", "cross"] = "self") -> Site:
    """Keys and values kept for later tokens, each (B, H_kv, S, d), after a layer's attention has run."""
    return Site("cache", layers, tower="text", attention=attention)


def logits(positions: Positions | None = None) -> Site:
    """Next-token scores, (B, T, V)."""
    return Site("logits", positions=positions)
