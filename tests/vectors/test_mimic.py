"""MimIC against its equation in fp64, and its gate as it is read in every way of running a model."""

from __future__ import annotations

import pytest
import torch

import steer
from steer import ops, sites
from tests.engine.helpers import HEADS, LAYERS, tokens

from .by_hand import Change, lse_of, padded, positions_of, wide_llama
from .learned import COUNTS, at_random, check_equation

IMPLEMENTATIONS = ["eager", "sdpa"]


def gate_by_hand(method, place, q, lse):
    """sigmoid(<q, w> + b - lse) of q (B, T, H, d) and lse (B, T, H)."""
    weight, bias = method.tensors["weight"][place].double(), method.tensors["bias"][place].double()
    return torch.sigmoid(torch.einsum("bthd,hd->bth", q, weight) + bias - lse)


# The engine takes the log-sum-exp in fp32 whatever the model's dtype is.
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layers", ["all", (2, 0)])
def test_it_is_its_equation_with_grouped_queries_and_left_padding(layers, implementation):
    model = wide_llama(implementation=implementation)
    method = at_random("mimic", model, layers=layers)
    places = list(range(LAYERS) if layers == "all" else layers)

    def shift(layer, o, q, scores, seen):
        if layer not in places:
            return o
        place = places.index(layer)
        g = gate_by_hand(method, place, q, lse_of(scores, seen))
        return o + g[..., None] * method.tensors["vector"][place].double()

    check_equation(model, method, Change(heads=shift), tolerance=1e-6)


class Gates:
    """What the method's gate was at every layer, row and head: the shift of each head over its vector."""

    def __init__(self, model, method) -> None:
        self.model, self.method = model, method
        self.kept = {(layer, when): [] for layer in range(LAYERS) for when in ("before", "after")}

    def _look(self, when):
        def kept(layer):
            return ops.Apply(lambda x: self.kept[layer, when].append(x.detach().clone()) or x)

        return [steer.Intervention(sites.head_out(layer), kept(layer)) for layer in range(LAYERS)]

    def of(self, run) -> torch.Tensor:
        """(L, B, T, H) of all forwards in `run`."""
        for kept in self.kept.values():
            kept.clear()
        with torch.no_grad(), steer.attach(self.model, *self._look("before"), self.method, *self._look("after")):
            run()
        found = []
        for layer in range(LAYERS):
            before, after = (torch.cat(self.kept[layer, when], dim=1) for when in ("before", "after"))
            ratio = (after - before) / self.method.tensors["vector"][layer].double()
            torch.testing.assert_close(ratio.amax(-1), ratio.amin(-1), rtol=0, atol=1e-5)
            found.append(ratio.mean(-1))
        return torch.stack(found)


def shifted(model) -> tuple:
    """A method with vectors large enough to divide by, and a row of tokens."""
    method = at_random("mimic", model, scale=0.3)
    method.tensors["vector"] = method.tensors["vector"].sign() * (0.2 + method.tensors["vector"].abs())
    method.tensors["bias"] = method.tensors["bias"] + 2.0
    return method, tokens(1, max(COUNTS), seed=3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_gate_is_the_same_in_a_full_forward_a_padded_batch_and_cached_decoding(implementation):
    model = wide_llama(implementation=implementation)
    method, ids = shifted(model)
    gates = Gates(model, method)
    whole = gates.of(lambda: model(input_ids=ids, use_cache=False))
    assert whole.shape == (LAYERS, 1, ids.shape[1], HEADS)
    assert 0.05 < float(whole.mean()) < 0.95
    assert float(whole.std()) > 0.1

    def one_by_one():
        cache = None
        for i in range(ids.shape[1]):
            cache = model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).past_key_values

    torch.testing.assert_close(gates.of(one_by_one), whole, rtol=0, atol=1e-6)

    def prompt_then_the_rest():
        cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
        model(input_ids=ids[:, 5:], past_key_values=cache, use_cache=True)

    torch.testing.assert_close(gates.of(prompt_then_the_rest), whole, rtol=0, atol=1e-6)
    if implementation == "eager":  # NaN in fp64 where a row is padding, without steer as well
        return
    batch = torch.cat([tokens(1, ids.shape[1] + 4, seed=8), torch.nn.functional.pad(ids, (4, 0))])
    mask = padded(batch, [batch.shape[1], ids.shape[1]])
    together = gates.of(
        lambda: model(input_ids=batch, attention_mask=mask.long(), position_ids=positions_of(mask), use_cache=False)
    )
    torch.testing.assert_close(together[:, 1:, 4:], whole, rtol=0, atol=1e-6)


def test_the_authors_gate_sees_later_tokens_and_padding_and_this_one_does_not():
    model = wide_llama()
    method, ids = shifted(model)
    method.tensors["vector"] = 1e-6 * method.tensors["vector"]  # so that queries and keys are the bare model's
    after = [sites.head_q(0), sites.head_k(0)]

    def theirs(row):
        """As in their training code: the log-sum-exp over all keys of the batch's row, without a mask."""
        with torch.no_grad(), steer.record(model, *after) as acts:
            model(input_ids=row, use_cache=False)
        q, k = (acts[site.name, 0].double() for site in after)
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2) / q.shape[-1] ** 0.5
        return gate_by_hand(method, 0, q.transpose(1, 2), scores.logsumexp(-1).transpose(1, 2))

    def ours(row):
        return Gates(model, method).of(lambda: model(input_ids=row, use_cache=False))[0]

    other = ids.clone()
    other[0, -1] = (other[0, -1] + 7) % 90 + 2
    early = slice(0, -1)
    torch.testing.assert_close(ours(ids)[:, early], ours(other)[:, early], rtol=0, atol=1e-5)
    assert (theirs(ids)[:, early] - theirs(other)[:, early]).abs().max() > 1e-3
    assert (theirs(ids)[:, early] - ours(ids)[:, early]).abs().max() > 0.1
    # The last token sees every key, so there the two agree: what a model reads in cached decoding.
    torch.testing.assert_close(theirs(ids)[:, -1], ours(ids)[:, -1], rtol=0, atol=1e-5)
