"""An attention that does not ask transformers' registry as its own do is refused, with its path and the reason."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steer._attention import AttentionSlot
from steer.errors import MappingError


class Asks(nn.Module):
    """Asks the registry, and has no function of its own."""

    def forward(self, query):
        return ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation](self, query)


def configured(module: nn.Module) -> nn.Module:
    module.config = SimpleNamespace(_attn_implementation="theirs")
    return module


@pytest.mark.parametrize(
    ("module", "fact"),
    [
        (Asks(), "Asks.*no config"),
        (configured(nn.Identity()), "Identity.*attention registry"),
        (configured(Asks()), "'theirs' of Asks was not found"),
    ],
)
def test_what_cannot_be_reached_is_named(module, fact):
    with pytest.raises(MappingError, match=f"layers.0.attn.*{fact}"):
        AttentionSlot(module, "layers.0.attn")


def test_a_config_that_keeps_the_name_itself_is_told_ours_and_given_back():
    module = configured(Asks())
    own = module.config
    own._attn_implementation = "sdpa"
    slot = AttentionSlot(module, "layers.0.attn")
    assert module.config._attn_implementation.startswith("sdpa|steer")
    assert own._attn_implementation == "sdpa"
    slot.restore()
    assert module.config is own
