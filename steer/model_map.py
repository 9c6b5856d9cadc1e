"""What `steer.inspect` found in a model: towers, layers and attention, as plain frozen data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import unknown_name

if TYPE_CHECKING:
    from ._address import Target
    from .sites import Site

Kind = Literal["softmax", "linear", "ssm", "conv"]


@dataclass(frozen=True)
class Projection:
    """Where one of q, k, v leaves a linear layer, before any rotary embedding.

    Attributes:
        path: the module's path in the model.
        pattern: an einops pattern of the output features, e.g. `(h d)`, `(n h d)` or `(h n d)` for a fused layer.
        index: which slice of axis `n` this is; None when the layer is not fused.
    """

    path: str
    pattern: str = "(h d)"
    index: int | None = None


@dataclass(frozen=True)
class Attention:
    """One token mixer. Sizes are what the attention function receives, not what a config says.

    Attributes:
        kind: `softmax` for attention proper, else the family of the mixer.
        path: the module's path in the model.
        num_heads: query heads.
        num_kv_heads: heads of the keys and values handed to the attention function.
        head_dim: width of one query (and key) head.
        value_dim: width of one head as it enters the output projection.
        out_proj: path of the output projection; None when the module has none.
        registry: whether it calls transformers' AttentionInterface, so that q, k, v can be changed after RoPE.
        q, k, v: the projections, where they are linear layers of this module.
    """

    kind: Kind
    path: str
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    out_proj: str | None = None
    registry: bool = False
    q: Projection | None = None
    k: Projection | None = None
    v: Projection | None = None


@dataclass(frozen=True)
class Layer:
    """One block of a tower.

    Attributes:
        index: its place in the tower, from 0.
        path: the module's path in the model.
        attention: self-attention or another mixer; None in a block that has none.
        cross_attention: attention over another tower's states.
        mlp: path of the MLP or mixture of experts.
        attn_out, cross_attn_out, mlp_out: path of the module whose output is what the branch adds to the residual
            stream (a norm after the branch where the model has one, else the branch itself).
    """

    index: int
    path: str
    attention: Attention | None = None
    cross_attention: Attention | None = None
    mlp: str | None = None
    attn_out: str | None = None
    cross_attn_out: str | None = None
    mlp_out: str | None = None


@dataclass(frozen=True)
class Tower:
    """One stack of layers.

    Attributes:
        name: `text`, `vision`, `audio`, `text_encoder` or `connector`; a second one of a kind is `vision_2`.
        path: the path of the module that holds the stack.
        width: D, the width of the residual stream at its first layer.
        layers: the blocks in the order in which they run.
        embeddings: path of the module whose output is the token or patch embeddings; None where the sequence is put
            together outside the tower (the text tower of a VLM), and the first layer's input is meant instead.
    """

    name: str
    path: str
    width: int
    layers: tuple[Layer, ...]
    embeddings: str | None = None

    @property
    def kind(self) -> str:
        """The name without the number of a second tower of its kind."""
        return self.name.rstrip("0123456789").rstrip("_")


@dataclass(frozen=True)
class Feature:
    """Where the feature of one stream appears.

    Attributes:
        path: the module's path in the model.
        field: the field of its output that holds the feature; None where the output is the feature itself.
        width: D of the feature, (B, D).
    """

    path: str
    field: str | None
    width: int


@dataclass(frozen=True)
class Streams:
    """How a model scores pictures against texts: two features, and an output made of both.

    Attributes:
        text, image: where the two features appear, as they are before they are normalised.
        tokens: path of the table of token embeddings, whose output is before positions are added.
        scores: the field of the model's output with the scores, (pictures, texts).
        scores_per_text: the field with the same turned, (texts, pictures), if there is one.
        options: arguments of the forward that make it score this way.
    """

    text: Feature
    image: Feature
    tokens: str
    scores: str
    scores_per_text: str | None = None
    options: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelMap:
    """The towers of one model.

    Attributes:
        model_class: the class's name.
        model_type: `config.model_type`.
        towers: by name; `text` is the decoder that writes tokens.
        logits: path of the module that makes the next-token scores, if there is one.
        image_token_id: the id that stands for image patches in `input_ids`, if there is one.
        num_parameters: of the whole model.
        notes: what could not be mapped, in words.
        streams: in a model that scores pictures against texts (CLIP), how it does.
    """

    model_class: str
    model_type: str
    towers: Mapping[str, Tower]
    logits: str | None = None
    image_token_id: int | None = None
    num_parameters: int = 0
    notes: tuple[str, ...] = field(default=())
    streams: Streams | None = None

    def tower(self, name: str = "text") -> Tower:
        """The tower of that name.

        Raises:
            UnknownNameError: there is none; the message lists those that exist.
        """
        if name not in self.towers:
            raise unknown_name("tower", name, self.towers, f"model: {self.model_class}")
        return self.towers[name]

    def attentions(self) -> Iterator[tuple[Tower, Layer, Attention]]:
        """Every attention or mixer of every tower, self before cross, in order."""
        for tower in self.towers.values():
            for layer in tower.layers:
                for attention in (layer.attention, layer.cross_attention):
                    if attention is not None:
                        yield tower, layer, attention

    def targets(self, site: Site) -> list[Target]:
        """The layers that a site names, each with the attention and heads that are meant; as `steer.attach` finds them.

        Raises:
            UnknownNameError: no such tower, layer or head.
            MappingError: the tower has nothing of the kind asked for.
        """
        from ._address import resolve

        return resolve(site, self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; layers as lists."""
        data = asdict(self)
        data["towers"] = {name: asdict(tower) for name, tower in self.towers.items()}
        for tower in data["towers"].values():
            tower["layers"] = list(tower["layers"])
        data["notes"] = list(self.notes)
        return data

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for a saved method to fit: architecture, and per tower its widths and heads."""
        towers = {
            name: {"width": tower.width, "layers": [_shape_of(layer) for layer in tower.layers]}
            for name, tower in self.towers.items()
        }
        shape = {"model_type": self.model_type, "towers": towers}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
        return {**shape, "digest": digest}

    def __str__(self) -> str:
        from ._tree import tree

        return tree(self)


def _shape_of(layer: Layer) -> list[Any]:
    def heads(attention: Attention | None) -> list[Any] | None:
        if attention is None:
            return None
        return [attention.kind, attention.num_heads, attention.num_kv_heads, attention.head_dim, attention.value_dim]

    return [heads(layer.attention), heads(layer.cross_attention)]
