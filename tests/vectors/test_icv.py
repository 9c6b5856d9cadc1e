"""ICV against a plain derivation: numpy's SVD of hooked states, and the shift written out in hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import steer
from steer.prompts import Prompt, encode
from tests.engine.helpers import hand_hooked

from .subjects import SUBJECTS, passing, subject


def directions_by_hand(one) -> np.ndarray:
    """(L, D): for every pair one row of all layers' differences, embeddings first; component plus mean, in fp64."""
    rows = []
    for example in one.examples:
        states = []
        for answered in (True, False):
            inputs = one.by_hand(Prompt(example, answered=answered))
            embedded = passing(one.layers[0], one.model, inputs, before=True)
            after = [passing(layer, one.model, inputs) for layer in one.layers]
            states.append(np.concatenate([x[0, -1].double().numpy() for x in (embedded, *after)]))
        rows.append(states[0] - states[1])
    rows = np.stack(rows)
    mean = rows.mean(0)
    u, _, vt = np.linalg.svd(rows - mean, full_matrices=False)
    component = vt[0] * np.sign(u[np.abs(u[:, 0]).argmax(), 0])
    return (component + mean).reshape(len(one.layers) + 1, -1)[1:]


@pytest.mark.parametrize("name", SUBJECTS)
def test_directions_are_the_principal_component_plus_the_mean(name):
    one = subject(name)
    method = steer.create("icv").fit(one.model, one.processor, one.examples, batch_size=3)
    truth = directions_by_hand(one)
    np.testing.assert_allclose(method.tensors["directions"].numpy(), truth, rtol=1e-3, atol=2e-4 * np.abs(truth).max())


@pytest.mark.parametrize("layers", ["all", (1,)])
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_shift_is_the_papers_at_every_token(name, layers):
    one, strength = subject(name), 0.4
    method = steer.create("icv", strength=strength, layers=layers).fit(one.model, one.processor, one.examples)

    def shift(v):
        def function(x):
            cosine = torch.nn.functional.cosine_similarity(x, -v.expand_as(x), dim=-1)
            y = strength * (1 + cosine.clamp_min(0)).unsqueeze(-1) * v / v.norm()
            moved = x / x.norm(dim=-1, keepdim=True) + y
            return moved / moved.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)

        return function

    chosen = range(len(one.layers)) if layers == "all" else layers
    vectors = method.tensors["directions"]
    hooks = [(one.layers[layer].mlp, shift(vectors[layer]), False) for layer in chosen]
    inputs = encode(one.model, one.processor, [Prompt(one.examples[0], tuple(one.examples[1:3]))]).inputs
    truth = hand_hooked(one.model, hooks, **inputs).detach()
    with steer.attach(one.model, method) as session, torch.no_grad():
        got = one.model(**inputs).logits
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))
    assert {line.tower for line in session.report().lines} == {"text"}
    assert not torch.allclose(got, one.model(**inputs).logits, atol=1e-2)


def test_a_negative_strength_is_refused():
    with pytest.raises(steer.errors.InterventionError, match="-0.1"):
        steer.create("icv", strength=-0.1)


def test_the_strength_is_the_one_that_answers_dev_best():
    one, dev = subject("tiny-vlm"), steer.zoo.examples("colour", "dev", n=12)
    method = steer.create("icv", strength=None).fit(one.model, one.processor, one.examples, dev=dev)
    batches = [encode(one.model, one.processor, [Prompt(query) for query in dev])]
    strengths, ranks = (0.05, 0.1, 0.2, 0.3, 0.5), []
    for strength in strengths:
        given = steer.create("icv", strength=strength).fit(one.model, one.processor, one.examples)
        torch.testing.assert_close(given.tensors["directions"], method.tensors["directions"])
        found = steer.fitting.score(one.model, batches, given)
        ranks.append((found.accuracy, float(found.log_prob.mean())))
    assert float(method.tensors["strength"]) == pytest.approx(strengths[ranks.index(max(ranks))])
    assert method.tensors["accuracy"].tolist() == pytest.approx([accuracy for accuracy, _ in ranks])
    best = steer.fitting.score(one.model, batches, method)
    assert float(best.log_prob.mean()) == pytest.approx(max(ranks)[1], abs=1e-4)


def test_without_dev_a_quarter_is_held_out_of_the_directions():
    one = subject("llama")
    pool, _ = steer.fitting.hold_out(one.examples, seed=3)
    chosen = steer.create("icv", strength=None).fit(one.model, one.processor, one.examples, seed=3)
    given = steer.create("icv").fit(one.model, one.processor, pool)
    torch.testing.assert_close(chosen.tensors["directions"], given.tensors["directions"])
