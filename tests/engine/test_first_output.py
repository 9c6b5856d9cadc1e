"""What a module gives beside its hidden states is left alone, whatever holds them together."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from steer import _hooks
from steer.errors import MappingError

X, REST = torch.ones(1, 2, 3), (torch.full((2,), 5.0),)


class Gives(nn.Module):
    """A module that gives one thing."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self):
        return self.output


@pytest.mark.parametrize(
    "output",
    [(X, *REST), [X, *REST], BaseModelOutput(last_hidden_state=X, hidden_states=REST)],
    ids=["tuple", "list", "names"],
)
def test_the_first_is_changed_and_the_rest_stays(output):
    module = Gives(output)
    _hooks.after(module, [lambda x: x * 2])
    made = module()
    assert type(made) is type(output)
    assert torch.equal(made[0], X * 2)
    rest = made.hidden_states if isinstance(made, BaseModelOutput) else tuple(made[1:])
    assert rest == REST


def test_a_field_that_is_not_there_is_an_error_that_says_how_to_go_on():
    module = Gives((X, *REST))
    _hooks.after_field(module, "pooler_output", [lambda x: x * 2])
    with pytest.raises(MappingError, match="no `pooler_output`.*return_dict=True"):
        module()
