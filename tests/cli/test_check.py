"""`steer check` passes on a good model, and fails where a promise is broken."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

import steer
from steer import _checks
from steer._bench import distance, equal, tensors
from steer.errors import MappingError, SteerError
from steer.model_map import Attention


def test_the_shipped_model_passes_in_both_towers(steer_cli):
    ran = steer_cli("check", "tiny-vlm", "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["passed"]) == (0, True)
    passed = {(check["name"], check["where"].split(" ")[0]) for check in found["checks"] if check["status"] == "pass"}
    assert {("head edit", "text"), ("head edit", "vision"), ("identity", "text"), ("identity", "vision")} <= passed
    assert {("empty session", ""), ("restored", ""), ("silence is an error", "text")} <= passed
    assert ("same with and without cache", "text") in passed


def statuses(output: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for check in json.loads(output)["checks"]:
        found.setdefault(check["name"], set()).add(check["status"])
    return found


def test_a_plugin_that_leaves_a_trace_on_the_weights_is_found(steer_cli, plugged):
    class Writes:
        @steer.hookimpl
        def steer_session_exit(self, session, report):
            with torch.no_grad():
                session.model.get_output_embeddings().weight.mul_(1.001)

    plugged(Writes())
    ran = steer_cli("check", "tiny-vlm", "--json")
    assert ran.code == 3
    assert "fail" in statuses(ran.out)["restored"]


def test_a_plugin_that_leaves_a_hook_is_found(steer_cli, plugged):
    class Leaves:
        @steer.hookimpl
        def steer_session_exit(self, session, report):
            session.model.register_forward_hook(lambda module, args, output: None)

    plugged(Leaves())
    ran = steer_cli("check", "tiny-vlm")
    assert ran.code == 3
    assert "changed: hooks" in ran.out


def test_a_head_in_the_wrong_place_is_found(steer_cli, monkeypatch):
    right = _checks._without_head
    monkeypatch.setattr(_checks, "_without_head", lambda model, attention, head: right(model, attention, head ^ 1))
    ran = steer_cli("check", "tiny-vlm", "--json")
    assert ran.code == 3
    assert statuses(ran.out)["head edit"] == {"fail"}


SMALL = {
    "gpt2, whose projection is stored transposed": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2)
    ),
    "vit, which writes no text": lambda: ViTModel(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
        )
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_without_a_processor_is_checked_on_random_inputs(steer_cli, tmp_path, name):
    torch.manual_seed(0)
    SMALL[name]().save_pretrained(tmp_path)
    ran = steer_cli("check", tmp_path, "--every-head", "--json")
    assert ran.code == 0, ran.out
    edits = [check for check in json.loads(ran.out)["checks"] if check["name"] == "head edit"]
    assert [check["status"] for check in edits] == ["pass"] * 8


def test_what_the_inputs_do_not_reach_is_left_out_and_said():
    model = steer.zoo.load()[0].eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    found = [check for job in _checks.plan(model, steer.inspect(model), inputs) for check in job()]
    vision = [one for one in found if one.where.startswith("vision") and one.name != "mapped"]
    assert {(one.name, one.status) for one in vision} == {("identity", "skip"), ("head edit", "skip")}
    assert all("these inputs do not reach it" in one.detail for one in vision)
    assert all(one.status == "pass" for one in found if one.where.startswith("text"))


def test_a_generate_that_fails_is_said_and_is_no_failure_of_ours(monkeypatch):
    model = steer.zoo.load()[0].eval()

    def generate(*args, **kwargs):
        raise NotImplementedError("no cache here")

    bench = _checks._Bench(model, steer.inspect(model), {"input_ids": torch.tensor([[5, 6, 7, 8]])})
    monkeypatch.setattr(type(model), "generate", generate)
    (check,) = bench.cache()
    assert (check.status, check.detail) == ("skip", "generate(use_cache=True) fails: no cache here")


@pytest.mark.parametrize(
    ("module", "path", "fact"),
    [
        (torch.nn.Linear(8, 8), None, "no output projection"),
        (torch.nn.Identity(), "out", "Identity, whose weight cannot be edited"),
        (torch.nn.Embedding(8, 8), "out", "Embedding, of which it is not known"),
    ],
)
def test_a_projection_that_is_no_linear_layer_has_no_head_to_edit(module, path, fact):
    attention = Attention("softmax", "attention", 2, 2, 4, 4, out_proj=path)
    with pytest.raises(SteerError, match=fact):
        _checks._without_head(torch.nn.ModuleDict({"out": module}), attention, 0)


def test_outputs_of_other_shapes_or_infinities_are_never_near():
    one = torch.ones(2, 3)
    assert len(tensors({"logits": one, "states": (one, [one, torch.tensor(1)]), "past_key_values": one})) == 3
    assert not equal([one], [one[:1]])
    assert not equal([one], [one.double()])
    assert distance([one], [one * 4]) == 0.75
    assert distance([one], [one[:1]]) == math.inf
    assert distance([one], [one.clone().fill_(math.inf)]) == math.inf


TEXT_ONLY = {"input_ids": torch.tensor([[5, 6, 7, 8]])}


def outcomes():
    """What five of the checks say of the tiny model's first layer, by name."""
    model = steer.zoo.load()[0].eval()
    model_map = steer.inspect(model)
    tower, bench = model_map.tower(), _checks._Bench(model, model_map, TEXT_ONLY)
    layer = tower.layers[0]
    edit = bench.head_edit(tower, layer, layer.attention, 0)
    found = [*bench.identity(tower, "resid_in"), *bench.silence(), *edit, *bench.cache()]
    return {check.name: check.status for check in found}, bench


def test_an_engine_that_does_nothing_fails(monkeypatch):
    monkeypatch.setattr(_checks, "attach", lambda model, *items: contextlib.nullcontext())
    found, bench = outcomes()
    (restored,) = bench.restored()
    assert found["silence is an error"] == found["head edit"] == restored.status == "fail"


def test_an_engine_that_refuses_is_said_and_passes_nothing(monkeypatch):
    def refuse(model, *items):
        raise MappingError("not here")

    monkeypatch.setattr(_checks, "attach", refuse)
    found, _ = outcomes()
    assert found["identity"] == found["silence is an error"] == "skip"
    assert found["head edit"] == found["same with and without cache"] == "fail"


def test_a_head_that_nothing_depends_on_proves_nothing():
    model = steer.zoo.load()[0].eval()
    model_map = steer.inspect(model)
    layer = model_map.tower().layers[0]
    with torch.no_grad():
        model.get_submodule(layer.attention.out_proj).weight.zero_()
    bench = _checks._Bench(model, model_map, TEXT_ONLY)
    (check,) = bench.head_edit(model_map.tower(), layer, layer.attention, 0)
    assert (check.status, check.detail) == ("skip", "the output does not depend on this head")
    bare = replace(layer.attention, out_proj=None)
    (check,) = bench.head_edit(model_map.tower(), layer, bare, 0)
    assert (check.status, check.detail) == ("skip", "it has no output projection")
