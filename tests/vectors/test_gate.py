"""Learned gates per token and head against the formula in plain hooks; what stays and what is trained; files."""

from __future__ import annotations

import copy
import json
from functools import cache

import pytest
import torch
from einops import rearrange
from torch.nn.functional import layer_norm
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import steer
from steer.errors import FileFormatError, FingerprintError, InterventionError, UnknownNameError
from steer.files import JSON_NAME, write_whole
from steer.prompts import Prompt, encode
from tests.engine.families import FAMILIES
from tests.engine.helpers import hand_hooked, randn, tokens
from tests.files.test_hostile import sealed

from .gating import inputs_of, shift_of, vector
from .subjects import SUBJECTS, subject

QUICK = {"progress": False, "max_steps": 3, "batch_size": 4, "dev": []}


def gated(one, inner, **config):
    """A gate around a method with random weights instead of learned ones."""
    method = steer.create("gate", **config).over(inner)
    start = method.initial(steer.inspect(one.model), torch.Generator())
    method.tensors = {
        name: x if name.startswith("inner.") else x + randn(*x.shape, seed=len(name), scale=0.7)
        for name, x in start.items()
    }
    return method


def head_shift(one):
    inner = steer.create("head_shift")
    start = inner.initial(steer.inspect(one.model), torch.Generator())
    inner.tensors = {name: randn(*x.shape, seed=3) for name, x in start.items()}
    return inner


@pytest.mark.parametrize("name", SUBJECTS)
def test_at_a_width_site_the_row_itself_says_how_much(name):
    one = subject(name)
    inner = vector(one, 1)
    inner.where = "answer"
    method = gated(one, inner, ceiling=3.0)
    layer, v = shift_of(inner)
    w, b = method.tensors["weight.0"][0], method.tensors["bias.0"][0]

    def shift(x):
        strength = 3 * torch.sigmoid(layer_norm(x, x.shape[-1:], eps=1e-5) @ w + b).unsqueeze(-1)
        moved = x + strength * v
        return torch.cat([x[:, :-1], moved[:, -1:]], dim=1)

    inputs = inputs_of(one, 0)
    truth = hand_hooked(one.model, [(one.layers[layer], shift, False)], **inputs).detach()
    with steer.attach(one.model, method), torch.no_grad():
        got = one.model(**inputs).logits
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


def test_at_a_head_its_query_after_rope_says_how_much():
    one = subject("llama")
    method = gated(one, head_shift(one))
    v = method.wrapped()[0].tensors["vector"]
    w, b = method.tensors["weight.0"], method.tensors["bias.0"]
    ids = tokens(2, 7)
    queries, handles = {}, []
    for index, layer in enumerate(one.layers):

        def keep(module, args, kwargs, index=index):
            x = kwargs.get("hidden_states", args[0] if args else None)
            q = rearrange(module.q_proj(x), "b t (h d) -> b h t d", d=module.head_dim)
            queries[index] = apply_rotary_pos_emb(q, q, *kwargs["position_embeddings"])[0]

        def shift(module, args, index=index):
            q = rearrange(queries[index], "b h t d -> b t h d")
            scores = torch.einsum("bthd,hd->bth", layer_norm(q, q.shape[-1:], eps=1e-5), w[index]) + b[index]
            moved = 2 * torch.sigmoid(scores).unsqueeze(-1) * v[index]
            return (args[0] + rearrange(moved, "b t h d -> b t (h d)"), *args[1:])

        handles.append(layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True))
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(shift))
    with torch.no_grad():
        truth = one.model(ids).logits
        for handle in handles:
            handle.remove()
        with steer.attach(one.model, method):
            got = one.model(ids).logits
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4 * float(truth.abs().max()))


@pytest.mark.parametrize("ceiling", [2.0, 1.25])
@pytest.mark.parametrize("name", SUBJECTS)
def test_the_start_is_the_wrapped_method(name, ceiling):
    one = subject(name)
    for inner in (vector(one, 1), head_shift(one)):
        method = steer.create("gate", ceiling=ceiling).over(inner)
        method.tensors = method.initial(steer.inspect(one.model), torch.Generator())
        inputs = inputs_of(one, 1)
        with torch.no_grad():
            with steer.attach(one.model, inner):
                truth = one.model(**inputs).logits
            with steer.attach(one.model, method):
                got = one.model(**inputs).logits
        torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()))


def test_a_batch_decodes_as_each_row_alone():
    one = subject("tiny-vlm")
    method = gated(one, head_shift(one))
    together = method.answer(one.model, one.processor, one.examples[:3], max_new_tokens=4)
    assert together == [method.answer(one.model, one.processor, [x], max_new_tokens=4)[0] for x in one.examples[:3]]


def loss(one, *items) -> float:
    batch = encode(one.model, one.processor, [Prompt(x) for x in one.examples])
    return -float(steer.fitting.score(one.model, [batch], *items).log_prob.mean())


@pytest.mark.parametrize("train_inner", [False, True])
def test_fitting_helps_and_leaves_what_is_frozen_alone(train_inner):
    one = subject("llama")
    inner = vector(one, 1, size=3.0)
    before = {name: x.clone() for name, x in inner.tensors.items()}
    method = steer.create("gate", train_inner=train_inner).over(inner)
    method.fit(one.model, one.processor, one.examples, dev=[], progress=False, max_steps=25, lr=0.05)
    assert loss(one, method) < loss(one, inner) - 0.1
    assert float(method.tensors["weight.0"].abs().max()) > 0
    assert torch.equal(method.tensors["inner.0.layer"], before["layer"])
    assert torch.equal(method.tensors["inner.0.vector"], before["vector"]) is not train_inner
    assert all(torch.equal(inner.tensors[name], before[name]) for name in before)
    assert not any(x.requires_grad for x in method.tensors.values())
    assert all(p.grad is None for p in one.model.parameters())


def test_a_fit_goes_on_in_its_folder_and_not_around_another_vector(tmp_path):
    one = subject("llama")
    options = {"dev": [], "progress": False, "folder": tmp_path, "batch_size": 4, "epochs": 2}
    whole = steer.create("gate").over(vector(one, 1)).fit(one.model, one.processor, one.examples, **options)
    again = steer.create("gate").over(vector(one, 1)).fit(one.model, one.processor, one.examples, **options)
    assert all(torch.equal(again.tensors[name], x) for name, x in whole.tensors.items())
    other = steer.create("gate").over(vector(one, 1, seed=9))
    assert other != steer.create("gate").over(vector(one, 1))
    with pytest.raises(steer.SteerError, match="folder|another"):
        other.fit(one.model, one.processor, one.examples, **options)


def test_gates_that_are_there_are_kept_and_nothing_to_gate_is_an_error():
    one = subject("llama")
    icv = steer.create("icv")
    icv.tensors = {"directions": randn(3, 64)}
    with pytest.raises(steer.SteerError, match="nothing to gate"):
        steer.create("gate").over(icv).fit(one.model, one.processor, one.examples, **QUICK)
    with pytest.raises(InterventionError, match=r"above 1.*0.5"):
        steer.create("gate", ceiling=0.5)


def test_one_call_for_every_kind():
    from steer_vectors.gate import KINDS, over

    inner = vector(subject("llama"), 1)
    for kind, name in KINDS.items():
        made = over(kind, inner)
        assert made.name == name
        assert made.wrapped() == [inner]
    with pytest.raises(UnknownNameError, match="retrieval"):
        over("retreival", inner)


def fitted(name: str):
    """A fitted gate of any kind, those on the prompt around one of the first kind."""
    return copy.deepcopy(made(name))


@cache
def made(name: str):
    one = subject("llama")
    inner = vector(one, 1)
    if name == "gate":
        return steer.create("gate").over(inner).fit(one.model, one.processor, one.examples, **QUICK)
    if name == "gate_retrieval":
        method = steer.create(name).over(fitted("gate"), vector(one, 2))
        return method.fit(one.model, one.processor, one.examples, labels=[0] * 4 + [1] * 4)
    method = steer.create(name).over(fitted("gate"))
    return method.fit(one.model, one.processor, one.examples[:4], otherwise=one.examples[4:])


NAMES = ("gate", "gate_threshold", "gate_retrieval")


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_does_the_same(name, tmp_path):
    one, method = subject("llama"), fitted(name)
    method.save_pretrained(tmp_path)
    loaded = steer.load(tmp_path, one.model)
    assert loaded == method
    assert loaded.provenance == method.provenance
    assert [x.name for x in loaded.wrapped()] == [x.name for x in method.wrapped()]
    assert loaded.tensors.keys() == method.tensors.keys()
    assert all(torch.equal(loaded.tensors[key], x) for key, x in method.tensors.items())
    inputs = encode(one.model, one.processor, [Prompt(x) for x in one.examples[:3]]).inputs
    with torch.no_grad():
        with steer.attach(one.model, method, strict=False):
            truth = one.model(**inputs).logits
        with steer.attach(one.model, loaded, strict=False):
            assert torch.equal(one.model(**inputs).logits, truth)
    with pytest.raises(FingerprintError):
        steer.load(tmp_path, FAMILIES["qwen2_5_vl"].model())


def test_a_wrapped_method_of_another_model_is_refused():
    one = subject("llama")
    other = subject("tiny-vlm")
    icv = steer.create("icv", layers=(1,)).fit(other.model, other.processor, other.examples)
    with pytest.raises(FingerprintError, match="number 0"):
        steer.attach(one.model, steer.create("gate").over(icv))


DAMAGE = [None, 7, "icv", {}, {"method": "icv"}, {"method": 3}, {"config": 3}, {"plugin": []}, {"provenance": [1]}]
DAMAGE += [{"method": "no_such"}, {"config": {"no_such": 1}}, {"config": {"where": "nowhere", "heads": "x"}}]


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
@pytest.mark.parametrize("deep", [False, True])
def test_hostile_files_are_one_clear_error(damage, deep, tmp_path):
    method = fitted("gate_threshold" if deep else "gate")
    method.save_pretrained(tmp_path)
    record = json.loads((tmp_path / JSON_NAME).read_text())
    whole = record["config"]["inner"]
    inner = whole[0]["config"]["inner"] if deep else whole
    inner[0] = {**copy.deepcopy(inner[0]), **damage} if damage and isinstance(damage, dict) else damage
    write_whole(tmp_path / JSON_NAME, sealed(record))
    with pytest.raises((FileFormatError, UnknownNameError)) as caught:
        steer.load(tmp_path)
    assert str(caught.value).strip()


@pytest.mark.parametrize("gone", ["inner.0.vector", "inner.0.layer", "weight.0"])
def test_missing_or_misshapen_tensors_are_refused_on_loading_onto_a_model(gone, tmp_path):
    one = subject("llama")
    for replacement in (None, torch.zeros(5, 5, 5)):
        method = fitted("gate")
        del method.tensors[gone]
        if replacement is not None:
            method.tensors[gone] = replacement
        method.save_pretrained(tmp_path)
        with pytest.raises(FileFormatError, match="gate"):
            steer.load(tmp_path, one.model)


def test_a_tower_of_wrappers_is_an_error_and_not_a_crash(tmp_path):
    method = fitted("gate")
    method.save_pretrained(tmp_path)
    record = json.loads((tmp_path / JSON_NAME).read_text())
    inner = record["config"]["inner"]
    for _ in range(250):
        inner = [{"method": "gate", "config": {"inner": inner}, "provenance": {}, "plugin": {}}]
    record["config"]["inner"] = inner
    write_whole(tmp_path / JSON_NAME, sealed(record))
    with pytest.raises(FileFormatError, match="nested"):
        steer.load(tmp_path)
