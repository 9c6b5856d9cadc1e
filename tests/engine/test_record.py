"""Recording keeps what was asked, where and as asked, and nothing else runs longer than it must."""

from __future__ import annotations

import pytest
import torch

import steer
from steer import ops, positions, sites
from steer.errors import UnknownNameError

from .families import FAMILIES
from .helpers import HEAD_DIM, HEADS, KV_HEADS, WIDTH, tiny_llama, tokens


def test_residuals_equal_transformers_hidden_states() -> None:
    model, ids = tiny_llama(), tokens()
    hidden = model(ids, output_hidden_states=True).hidden_states
    with steer.record(model, sites.embeddings(), sites.resid_in(), sites.resid_out(layers=[0, 1])) as acts:
        model(ids)
    assert torch.equal(acts["embeddings"], hidden[0])
    for layer in range(3):
        assert torch.equal(acts["resid_in", layer], hidden[layer])
    assert torch.equal(acts["resid_out", 1], hidden[2])
    assert len(acts) == 6


def test_heads_have_the_documented_layouts_and_rebuild_the_attention() -> None:
    model, ids = tiny_llama(), tokens()
    wanted = [site(layers=1) for site in (sites.head_q, sites.head_k, sites.head_v, sites.head_out)]
    with steer.record(model, *wanted, sites.attn_out(layers=1)) as acts:
        model(ids)
    assert acts["head_q", 1].shape == (2, HEADS, 9, HEAD_DIM)
    assert acts["head_k", 1].shape == acts["head_v", 1].shape == (2, KV_HEADS, 9, HEAD_DIM)
    flat = acts["head_out", 1].flatten(-2)
    assert torch.equal(model.model.layers[1].self_attn.o_proj(flat), acts["attn_out", 1])


def test_only_chosen_heads_and_rows_are_kept() -> None:
    model, ids = tiny_llama(), tokens()
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    site = sites.head_out(layers=0, heads=[2, 6], positions=positions.last_prompt())
    with steer.record(model, sites.head_out(layers=0), site, dtype=torch.float64) as acts:
        model(ids, attention_mask=mask)
    whole, part = acts.steps("head_out", 0)
    assert part.dtype == torch.float64
    assert torch.equal(part, whole[:, -1, [2, 6]])


def test_stop_skips_the_rest_of_the_model_and_of_the_block() -> None:
    model, ids = tiny_llama(), tokens()
    ran = []
    model.model.layers[2].register_forward_hook(lambda *a: ran.append(1))
    with steer.record(model, sites.resid_out(layers=0), sites.head_q(layers=1), stop=True) as acts:
        model(ids)
        ran.append("unreachable")
    assert not ran
    assert set(acts) == {("resid_out", 0, "text", "self"), ("head_q", 1, "text", "self")}


def test_generation_is_recorded_step_by_step() -> None:
    model, ids = tiny_llama(), tokens(1, 5)
    with steer.record(model, sites.resid_out(layers=2)) as acts:
        written = model.generate(ids, max_new_tokens=4, do_sample=False)
    steps = acts.steps("resid_out", 2)
    assert [s.shape[1] for s in steps] == [5, 1, 1, 1]
    with steer.record(model, sites.resid_out(layers=2)) as acts:
        model(written[:, :-1])
    torch.testing.assert_close(torch.cat(steps, 1), acts["resid_out", 2], rtol=1e-5, atol=1e-5)


def test_a_recording_inside_a_session_sees_what_the_session_made() -> None:
    model, ids = tiny_llama(), tokens()
    with steer.attach(model, steer.Intervention(sites.resid_out(layers=1), ops.Replace(torch.full((WIDTH,), 2.0)))):
        with steer.record(model, sites.resid_out(layers=1)) as acts:
            model(ids)
    assert (acts["resid_out", 1] == 2).all()


def test_asking_for_what_was_not_recorded_says_what_was() -> None:
    model, ids = tiny_llama(), tokens()
    with steer.record(model, sites.resid_out(layers=1)) as acts:
        model(ids)
    with pytest.raises(UnknownNameError, match="resid_out"):
        acts["resid_out", 2]


def test_rows_that_a_forward_does_not_have_are_left_out() -> None:
    model, ids = tiny_llama(), tokens(1, 5)
    with steer.record(model, sites.resid_out(layers=2, positions=positions.last_prompt())) as acts:
        model.generate(ids, max_new_tokens=4, do_sample=False)
    with steer.record(model, sites.resid_out(layers=2)) as whole:
        model(ids)
    (only,) = acts.steps("resid_out", 2)
    torch.testing.assert_close(only, whole["resid_out", 2][:, -1:].view_as(only), rtol=1e-5, atol=1e-5)


def test_after_clear_a_recording_holds_what_came_later_only() -> None:
    model = tiny_llama()
    with steer.record(model, sites.resid_out(layers=1)) as acts:
        model(tokens(seed=1))
        acts.clear()
        assert not len(acts)
        model(tokens(seed=2))
    with steer.record(model, sites.resid_out(layers=1)) as later:
        model(tokens(seed=2))
    (only,) = acts.steps("resid_out", 1)
    assert torch.equal(only, later["resid_out", 1])


@pytest.mark.parametrize(("name", "layer"), [("florence2", 0), ("mllama", 1)])
def test_positions_of_keys_of_cross_attention_count_what_is_looked_at(name, layer) -> None:
    family = FAMILIES[name]
    model, given = family.model(), family.prompt()
    at = {"layers": layer, "attention": "cross"}
    with steer.record(model, sites.head_k(**at), sites.head_k(**at, positions=positions.index(1))) as acts:
        model(**given)
    whole, second = acts.steps("head_k", layer, attention="cross")
    assert torch.equal(second, whole[:, :, 1])
