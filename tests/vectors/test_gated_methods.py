"""Whatever is gated by the prompt, at whatever site: a row is the ungated method's row or the bare model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import steer
from steer import gates, ops, positions, sites
from steer.errors import InterventionError
from steer.prompts import Prompt, encode
from tests.engine.families import FAMILIES
from tests.engine.helpers import randn, tiny_llama

from .subjects import subject

ROWS = (0, 4, 2, 5)
LEARNED = ("live", "head_shift", "mimic", "hyper_icl")


@dataclass
class Anything(steer.Method):
    """One intervention of a kind, after layer 0."""

    name: ClassVar[str] = "anything"
    paper: ClassVar[str] = "https://example.org"
    summary: ClassVar[str] = "For tests."

    kind: str = "replace"

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        width = model_map.tower().width
        v, u = randn(width, seed=1), randn(width, seed=2)
        made = {
            "replace": lambda: steer.Intervention(sites.mlp_out([1, 2]), ops.Replace(v)),
            "replace at the prompt's end": lambda: steer.Intervention(
                sites.resid_out(1, positions=positions.last_prompt()), ops.Replace(v)
            ),
            "scale": lambda: steer.Intervention(sites.head_out(1, [3, 5]), ops.Scale(0.0)),
            "rotate": lambda: steer.Intervention(sites.resid_in(1), ops.Rotate(v, u, 1.0)),
            "keys": lambda: steer.Intervention(sites.head_k([1]), ops.Scale(-1.0)),
            "bias": lambda: steer.Intervention(
                sites.key_bias([1, 2], [0, 4]), ops.KeyBias(-5.0, positions.index(0, 1))
            ),
            "threshold": lambda: steer.Intervention(sites.resid_out(2), ops.Add(9 * v), gates.Threshold(u)),
            "logits": lambda: steer.Intervention(sites.logits(), ops.Scale(2.0)),
            "embeddings": lambda: steer.Intervention(sites.embeddings(), ops.Scale(2.0)),
            "cache": lambda: steer.Intervention(sites.cache([1]), ops.Apply(lambda k, v: (k, v))),
        }
        return [made[self.kind]()]


class Plugin:
    @steer.hookimpl
    def steer_register_methods(self, registry):
        registry.add(Anything)


@pytest.fixture(autouse=True)
def _anything_is_installed(plugged):
    plugged(Plugin())


def shift(name: str, model) -> steer.Method:
    if name not in LEARNED:
        return steer.create("anything", kind=name)
    method = steer.create(name, layers=(1, 2))
    start = method.initial(steer.inspect(model), torch.Generator().manual_seed(0))
    method.tensors = {key: x + randn(*x.shape, seed=len(key), scale=0.5) for key, x in start.items()}
    return method


def gate_around(inner: steer.Method, one, rows=ROWS) -> tuple[steer.Method, list[bool]]:
    """A gate that acts on half of the rows."""
    method = steer.create("gate_threshold", layer=1, similarity="cosine").over(inner)
    method.fit(one.model, one.processor, one.examples[:4], otherwise=one.examples[4:])
    queries = [one.examples[i] for i in rows]
    batches = [encode(one.model, one.processor, [Prompt(query)]) for query in queries]
    states = steer.prompt_state.prompt_states(one.model, batches, [sites.resid_in(1)])[0]
    scores = torch.cosine_similarity(states, method.tensors["direction"], dim=-1)
    method.tensors["threshold"], method.tensors["below"] = scores.sort().values[1:3].mean(), torch.tensor(0.0)
    return method, method.decide(one.model, one.processor, queries)


KINDS = ("replace", "replace at the prompt's end", "scale", "rotate", "keys", "bias", "threshold", "logits")


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", [*LEARNED, *KINDS])
def test_a_row_is_steered_or_left_alone(name, implementation):
    one = subject("llama")
    model = tiny_llama(pad_token_id=None, implementation=implementation)
    inner = shift(name, model)
    method, acts = gate_around(inner, one)
    assert sum(acts) == 2
    inputs = encode(model, one.processor, [Prompt(one.examples[i]) for i in ROWS]).inputs

    def written(*items):
        with steer.attach(model, *items):
            out = model.generate(
                **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return torch.stack(out.logits, dim=1)

    got, full, plain = written(method), written(inner), written()
    for row, act in enumerate(acts):
        torch.testing.assert_close(got[row], (full if act else plain)[row], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(full, plain, atol=1e-3)


@pytest.mark.parametrize(("kind", "fact"), [("embeddings", "embeddings"), ("cache", "takes no gate")])
def test_what_comes_too_early_or_takes_no_gate_is_refused(kind, fact):
    one = subject("llama")
    with pytest.raises(InterventionError, match=fact):
        gate_around(steer.create("anything", kind=kind), one)


def test_both_conditions_of_a_gate_around_a_gate_must_hold():
    one = subject("llama")
    inner, first = gate_around(shift("live", one.model), one)
    outer, second = gate_around(inner, one)
    outer.tensors["below"] = torch.tensor(1.0)
    acts = [a and not b for a, b in zip(first, second, strict=True)]
    inputs = encode(one.model, one.processor, [Prompt(one.examples[i]) for i in ROWS]).inputs
    with torch.no_grad():
        plain = one.model(**inputs).logits
        with steer.attach(one.model, outer):
            got = one.model(**inputs).logits
    assert [not torch.equal(a, b) for a, b in zip(got, plain, strict=True)] == acts


@pytest.mark.parametrize("options", ["assistant", "lookup"])
def test_guessed_tokens_do_not_change_the_decision(options):
    one = subject("llama")
    method, _ = gate_around(shift("live", one.model), one)
    more = {"prompt_lookup_num_tokens": 2} if options == "lookup" else {"assistant_model": tiny_llama(seed=1)}
    for index in ROWS:
        ids = encode(one.model, one.processor, [Prompt(one.examples[index])]).inputs["input_ids"]
        with steer.attach(one.model, method):
            greedy = one.model.generate(ids, max_new_tokens=5, do_sample=False)
            assert torch.equal(one.model.generate(ids, max_new_tokens=5, do_sample=False, **more), greedy)


@pytest.mark.parametrize("name", ["mllama", "qwen3_5", "florence2"])
def test_on_other_architectures_all_or_nothing(name):
    """Cross-attention, linear attention, and a decoder whose prompt is its first token."""
    family = FAMILIES[name]
    model = family.model()
    inputs = family.prompt()
    last = len(steer.inspect(model).tower().layers) - 1
    width = steer.inspect(model).tower().width
    inner = steer.create("live", layers=(last,))
    inner.tensors = {"vector": randn(1, width), "alpha": torch.ones(1)}
    method = steer.create("gate_threshold", similarity="cosine").over(inner)
    method.tensors |= {"direction": randn(width, seed=5), "layer": torch.tensor(float(last))}
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

    def logits(*items):
        with steer.attach(model, *items):
            return torch.stack(model.generate(**inputs, **options).logits)

    for below, truth in ((0.0, logits()), (1.0, logits(inner))):
        method.tensors |= {"threshold": torch.tensor(2.0), "below": torch.tensor(below)}
        torch.testing.assert_close(logits(method), truth, rtol=1e-4, atol=1e-4)
