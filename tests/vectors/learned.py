"""The methods that are fitted by gradient, with tensors at random, and how a model answers with one attached."""

from __future__ import annotations

from typing import Any

import torch

import steer
from steer.training import Learned
from tests.engine.helpers import tokens

from .by_hand import Change, logits_by_hand, padded, positions_of

METHODS = ("live", "head_shift", "mimic", "hyper_icl", "hificl")
COUNTS = [9, 4]
"""Real tokens of the rows of a batch that is padded on the left."""


def at_random(name: str, model: Any, seed: int = 0, scale: float = 0.5, **fields: Any) -> Learned:
    """A method whose every tensor is normal noise, so that nothing hides behind a zero."""
    method = steer.create(name, **fields)
    assert isinstance(method, Learned)
    generator = torch.Generator().manual_seed(seed)
    shapes = method.initial(steer.inspect(model), generator)
    wide = torch.promote_types(model.dtype, torch.float32)
    for key, value in shapes.items():
        method.tensors[key] = scale * torch.randn(value.shape, generator=generator).to(wide)
    return method


def at_the_start(name: str, model: Any, **fields: Any) -> Learned:
    """A method as it is before the first step."""
    method = steer.create(name, **fields)
    assert isinstance(method, Learned)
    method.tensors = method.initial(steer.inspect(model), torch.Generator().manual_seed(0))
    return method


@torch.no_grad()
def logits_with(model: Any, ids: torch.Tensor, mask: torch.Tensor | None, *methods: Any) -> torch.Tensor:
    """Logits (B, T, V) of one forward."""
    more = {} if mask is None else {"attention_mask": mask.long(), "position_ids": positions_of(mask)}
    with steer.attach(model, *methods):
        return model(input_ids=ids, use_cache=False, **more).logits


def check_equation(model: Any, method: Learned, change: Change, tolerance: float = 1e-9) -> None:
    """The method's logits on a batch padded on the left are the equation's, and not the model's own."""
    ids = tokens(2, max(COUNTS))
    mask = padded(ids, COUNTS)
    if model.config._attn_implementation == "eager":
        # transformers takes this softmax in fp32, where fp64's lowest number is -inf and a row of padding NaN.
        mask, tolerance = torch.ones_like(mask), max(tolerance, 1e-6)
    truth, got = logits_by_hand(model, ids, change, mask), logits_with(model, ids, mask, method)
    scale = float(truth[mask].abs().max())
    torch.testing.assert_close(got[mask], truth[mask], rtol=0, atol=tolerance * scale)
    assert (got - logits_with(model, ids, mask))[mask].abs().max() > 1e-2 * scale
