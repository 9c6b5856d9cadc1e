"""Blocks that nobody has seen before: what cannot be read is left out or said, and nothing is made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import steer
from steer import sites
from steer.errors import MappingError
from tests.engine.helpers import tiny_llama

WIDTH, HEADS = 24, 4


class Looks(nn.Module):
    """Torch's own attention, whose projections never leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.many = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.many(x, x, x)[0]


class Chooses(nn.Module):
    """Attention that asks for a value, which a trace of shapes does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if float(x.sum()) > 1e9:
            return x
        return self.out((self.q(x) @ self.k(x).transpose(-1, -2)).softmax(-1) @ self.v(x))


class Block(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        self.calm, self.attention, self.mlp = nn.LayerNorm(WIDTH), attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.calm(x))
        return x + self.mlp(x)


class Tower(nn.Module):
    def __init__(self, attention: type[nn.Module], reads: nn.Module, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.reads, self.chain = reads, nn.ModuleList(block(attention) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.reads(x)
        for block in self.chain:
            x = block(x)
        return x


class Model(nn.Module):
    def __init__(self, **towers: nn.Module) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="odd")
        for name, tower in towers.items():
            setattr(self, name, tower)


def words(attention: type[nn.Module] = Looks, block: type[nn.Module] = Block) -> Tower:
    return Tower(attention, nn.Embedding(50, WIDTH), block)


def test_torchs_own_attention_has_heads_and_a_projection_out() -> None:
    layers = steer.inspect(Model(words=words())).tower("text").layers
    found = [layer.attention for layer in layers]
    assert [(one.num_heads, one.num_kv_heads, one.head_dim, one.value_dim) for one in found] == [(4, 4, 6, 6)] * 3
    assert found[2].out_proj == "words.chain.2.attention.many.out_proj"
    assert all(one.q is one.k is one.v is None for one in found)


def test_attention_that_cannot_be_traced_is_there_and_is_said() -> None:
    made = steer.inspect(Model(words=words(Chooses)))
    assert [layer.attention.num_heads for layer in made.tower("text").layers] == [None] * 3
    assert "attention whose forward could not be traced: words.chain.1.attention" in made.notes


def test_a_block_without_source_is_mapped_by_what_it_holds() -> None:
    scope: dict[str, Any] = {}
    exec("def forward(self, x):\n    x = x + self.attention(self.calm(x))\n    return x + self.mlp(x)", scope)
    unread = type("Unread", (Block,), {"forward": scope["forward"]})
    layers = steer.inspect(Model(words=words(block=unread))).tower("text").layers
    assert [layer.attention.path for layer in layers] == [f"words.chain.{i}.attention.many" for i in range(3)]


def test_a_tower_behind_a_convolution_over_time_hears_as_one_whose_config_counts_bins() -> None:
    bins = Tower(Looks, nn.Linear(8, WIDTH))
    bins.config = SimpleNamespace(num_mel_bins=8)
    for ears in (Tower(Looks, nn.Conv1d(1, WIDTH, 4)), bins):
        made = steer.inspect(Model(words=words(), ears=ears))
        assert {name: one.path for name, one in made.towers.items()} == {"text": "words.chain", "audio": "ears.chain"}


class Winding(Block):
    """The same block, said in more words: a shift of the stream, a module by another name, a list with a rest."""

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None, plain: bool = True) -> torch.Tensor:
        if shift is not None:
            x = x + shift
        mlp = self.mlp
        first, *_ = [self.attention(self.calm(x)), x]
        x = x + first
        if self.calm.no_such_thing or plain is None or missing is None:  # noqa: F821
            return x
        if mlp:
            x = x + mlp(x)
        return x


def test_a_winding_forward_is_read_as_the_plain_one() -> None:
    plain, winding = (steer.inspect(Model(words=words(block=block))).tower("text").layers for block in (Block, Winding))
    assert winding == plain
    assert plain[1].mlp_out == "words.chain.1.mlp"


class Again(Block):
    """A forward that calls itself."""

    def forward(self, x: torch.Tensor, times: int = 2) -> torch.Tensor:
        x = x + self.attention(self.calm(x))
        x = x + self.mlp(x)
        return self.forward(x, times - 1) if times else x


class Bent(nn.Module):
    """A layer whose forward is no Python, so that there is nothing in it to read."""

    forward = staticmethod(torch.relu)

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(WIDTH, WIDTH)


class Opaque(Block):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__(attention)
        self.mlp = Bent()


@pytest.mark.parametrize("block", [Again, Opaque])
def test_reading_ends_where_there_is_no_end_and_where_there_is_nothing_to_read(block: type[nn.Module]) -> None:
    plain, odd = (steer.inspect(Model(words=words(block=one))).tower("text").layers for one in (Block, block))
    assert [layer.attention for layer in odd] == [layer.attention for layer in plain]


class Turns(nn.Module):
    """Attention that turns its values by a matrix between its softmax and its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.turn = nn.Parameter(torch.eye(WIDTH // HEADS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (one(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        turned = v @ self.turn
        return self.out((weights @ turned).transpose(1, 2).flatten(2))


def test_a_product_between_softmax_and_sum_is_not_taken_for_the_sum() -> None:
    one = steer.inspect(Model(words=words(Turns))).tower("text").layers[0].attention
    assert (one.num_heads, one.head_dim, one.value_dim) == (4, 6, 6)
    assert (one.q.path, one.v.path, one.out_proj) == tuple(
        f"words.chain.0.attention.{name}" for name in ("q", "v", "out")
    )


def test_a_model_without_blocks_is_named() -> None:
    with pytest.raises(MappingError, match="no stack of blocks with attention was found in Linear"):
        steer.inspect(nn.Linear(2, 2))


class Own(nn.Module):
    """A layer of somebody's own in the place of a linear one, of which only it knows the sizes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


@pytest.mark.parametrize("width", [64, 96])
def test_the_mlp_is_not_taken_for_an_output_projection_that_is_not_known(width: int) -> None:
    """The MLP beside an attention has a layer of just the width that leaves it: the first one, or here the last."""
    model = tiny_llama(intermediate_size=96, head_dim=width // 8)
    attention = model.model.layers[0].self_attn
    attention.o_proj = Own(attention.o_proj)
    mixers = [layer.attention for layer in steer.inspect(model).tower().layers]
    assert [one.out_proj for one in mixers[:2]] == [None, "model.layers.1.self_attn.o_proj"]
    one = steer.Intervention(sites.head_out(0), steer.ops.Scale(0.0))
    with pytest.raises(MappingError, match="layer 0 of the text tower"), steer.attach(model, one):
        pass
