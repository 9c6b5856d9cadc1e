"""What holds at the start of a fit and in its backward pass, for every learned method."""

from __future__ import annotations

import pytest
import torch

import steer
from tests.engine.helpers import tiny_llama, tokens

from .by_hand import padded, positions_of, wide_llama
from .learned import at_random, at_the_start, logits_with

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 6,
}
CASES = [
    ("live", {}),
    ("live", {"keep_norm": False, "site": "mlp_out"}),
    ("head_shift", {}),
    ("head_shift", {"heads": ((0, 1), (1, 3))}),
    ("mimic", {}),
    ("hyper_icl", {"rank": 2}),
    ("hyper_icl", {"rank": 1, "gated": False}),
    ("hificl", {"virtual": 2, "rank": 1}),
]


@pytest.mark.parametrize(("name", "fields"), CASES, ids=str)
def test_gradients_through_a_session_are_the_slopes_of_the_forward(name, fields):
    model = wide_llama(**SMALL)
    method = at_random(name, model, **fields)
    ids = tokens(2, 4) % 6
    mask = padded(ids, [4, 3])
    names = sorted(method.tensors)
    weights = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).double() * mask[..., None]

    def loss(*values):
        method.tensors = dict(zip(names, values, strict=True))
        with steer.attach(model, method):
            logits = model(
                input_ids=ids, attention_mask=mask.long(), position_ids=positions_of(mask), use_cache=False
            ).logits
        return (logits.log_softmax(-1) * weights).sum()

    values = [method.tensors[key].clone().requires_grad_(True) for key in names]
    # The log-sum-exp of MimIC's gate is taken in fp32: steps as small as fp64 allows would be lost in its rounding.
    options = {"eps": 1e-3, "atol": 2e-3, "rtol": 2e-3} if name == "mimic" else {"eps": 1e-6, "atol": 1e-6}
    assert torch.autograd.gradcheck(loss, values, **options)
    for key, gradient in zip(names, torch.autograd.grad(loss(*values), values), strict=True):
        assert gradient.abs().max() > 0, key
    assert all(weight.grad is None for weight in model.parameters())


EXACT = [
    ("live", {"keep_norm": False}),
    ("live", {"keep_norm": False, "site": "mlp_out"}),
    ("head_shift", {}),
    ("head_shift", {"heads": ((0, 1), (2, 7))}),
    ("mimic", {}),
    ("hyper_icl", {}),
    ("hyper_icl", {"gated": False}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "fields"), EXACT, ids=str)
def test_a_fit_starts_at_the_model_itself_bit_for_bit(name, fields, dtype):
    model = tiny_llama(pad_token_id=None, implementation="eager").to(dtype)
    ids = tokens(2, 9)
    mask = padded(ids, [9, 4])
    bare, started = logits_with(model, ids, mask), logits_with(model, ids, mask, at_the_start(name, model, **fields))
    assert torch.equal(started, bare)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("site", ["resid_out", "mlp_out"])
def test_with_lengths_kept_a_fit_starts_within_rounding(site, dtype):
    """||y|| / ||y|| need not be 1 to the last bit; a last bit per layer is all that may differ."""
    model = tiny_llama(pad_token_id=None, implementation="eager").to(dtype)
    ids = tokens(2, 9)
    bare, started = logits_with(model, ids, None), logits_with(model, ids, None, at_the_start("live", model, site=site))
    bound = 8 * torch.finfo(dtype).eps * float(bare.abs().max())
    torch.testing.assert_close(started, bare, rtol=0, atol=bound)
