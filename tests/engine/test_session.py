"""Sessions: what they report, refuse and compose."""

from __future__ import annotations

import copy
import json
import pickle
import threading

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

import steer
from steer import gates, ops, positions, sites
from steer.errors import InterventionError, MappingError, NeverFiredError, SessionError, UnknownNameError

from .families import FAMILIES
from .helpers import HEAD_DIM, HEADS, KV_HEADS, LAYERS, VOCAB, WIDTH, hand_hooked, randn, tiny_llama, tokens

RESIDUAL = {
    "resid_in": lambda layer: (layer, True),
    "resid_out": lambda layer: (layer, False),
    "attn_out": lambda layer: (layer.self_attn, False),
    "mlp_out": lambda layer: (layer.mlp, False),
}


@pytest.mark.parametrize("name", sorted(RESIDUAL))
def test_residual_sites_equal_hand_written_hooks(name) -> None:
    model, ids, v = tiny_llama(), tokens(), randn(LAYERS, WIDTH)
    hooks = []
    for layer, row in zip(model.model.layers, v, strict=True):
        module, on_input = RESIDUAL[name](layer)
        hooks.append((module, lambda x, row=row: x + row, on_input))
    if name == "resid_in":
        truth = _with_layer_inputs(model, v, ids)
    else:
        truth = hand_hooked(model, hooks, input_ids=ids)
    with steer.attach(model, steer.Intervention(getattr(sites, name)(), ops.Add(v))):
        assert torch.equal(model(ids).logits, truth)


def _with_layer_inputs(model, v, ids) -> torch.Tensor:
    """Shifting the input of layer l is shifting the output of l - 1, and of the embedding for the first."""
    layers = model.model.layers
    modules = [model.model.embed_tokens, layers[0], layers[1]]
    return hand_hooked(
        model, [(m, lambda x, row=row: x + row, False) for m, row in zip(modules, v, strict=True)], input_ids=ids
    )


def test_embeddings_and_logits_sites() -> None:
    model, ids, v = tiny_llama(), tokens(), randn(WIDTH)
    truth = hand_hooked(model, [(model.model.embed_tokens, lambda x: x + v, False)], input_ids=ids)
    with steer.attach(model, steer.Intervention(sites.embeddings(), ops.Add(v))):
        assert torch.equal(model(ids).logits, truth)
    shift = randn(VOCAB)
    base = model(ids).logits
    with steer.attach(model, steer.Intervention(sites.logits(), ops.Add(shift))):
        assert torch.equal(model(ids).logits, base + shift)


@pytest.mark.parametrize("site", ["head_q", "head_k", "head_v", "head_out"])
def test_scaling_heads_equals_scaling_rows_of_weights(site) -> None:
    """Scaling q, k or v heads is scaling the rows of their projection (RoPE is linear); head_out, columns of o_proj."""
    import copy

    model, ids = tiny_llama(), tokens()
    head = 1
    edited = copy.deepcopy(model)
    attention = edited.model.layers[1].self_attn
    rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    if site == "head_out":
        attention.o_proj.weight[:, rows] *= 0.5
    else:
        getattr(attention, {"head_q": "q_proj", "head_k": "k_proj", "head_v": "v_proj"}[site]).weight[rows] *= 0.5
    with steer.attach(model, steer.Intervention(getattr(sites, site)(layers=1, heads=head), ops.Scale(0.5))):
        torch.testing.assert_close(model(ids).logits, edited(ids).logits, rtol=1e-5, atol=1e-5)


def test_cache_site_reads_and_writes_what_later_tokens_see() -> None:
    model, ids = tiny_llama(), tokens(1, 8)

    def forget_values(keys, values):
        return keys, torch.zeros_like(values)

    with steer.attach(model, steer.Intervention(sites.cache(layers=1), ops.Apply(forget_values))) as session:
        cache = model(ids[:, :7], use_cache=True).past_key_values
    assert torch.equal(cache.layers[1].values, torch.zeros(1, KV_HEADS, 7, HEAD_DIM))
    assert cache.layers[0].values.abs().sum() > 0
    assert session.report().lines[0].calls == 1
    with steer.record(model, sites.cache(layers=0)) as acts:
        cache = model(ids, use_cache=True).past_key_values
    assert torch.equal(acts["cache", 0][0], cache.layers[0].keys)


def test_cache_edit_may_shorten_but_not_reshape() -> None:
    model, ids = tiny_llama(), tokens(1, 8)
    bad = steer.Intervention(sites.cache(layers=1), ops.Apply(lambda k, v: (k[:, :1], v)))
    with pytest.raises(InterventionError, match="cache text layer 1"), steer.attach(model, bad):
        model(ids, use_cache=True)


def test_order_is_the_order_attached_within_and_across_sessions() -> None:
    model, ids, v = tiny_llama(), tokens(), randn(WIDTH)
    add = steer.Intervention(sites.resid_out(layers=0), ops.Add(v), name="add")
    double = steer.Intervention(sites.resid_out(layers=0), ops.Scale(2.0), name="double")
    layer = model.model.layers[0]
    truths = [
        hand_hooked(model, [(layer, f, False)], input_ids=ids) for f in (lambda x: (x + v) * 2, lambda x: x * 2 + v)
    ]
    for items, truth in zip(((add, double), (double, add)), truths, strict=True):
        with steer.attach(model, *items) as session:
            assert torch.equal(model(ids).logits, truth)
        assert [line.name for line in session.report().lines] == [item.name for item in items]
        with steer.attach(model, items[0]), steer.attach(model, items[1]):
            assert torch.equal(model(ids).logits, truth)


def test_attention_sessions_nest_on_one_module() -> None:
    model, ids = tiny_llama(), tokens()
    one = steer.Intervention(sites.head_q(layers=1), ops.Scale(1.5))
    two = steer.Intervention(sites.head_q(layers=1), ops.Add(randn(HEADS, HEAD_DIM)))
    with steer.attach(model, one, two):
        truth = model(ids).logits
    with steer.attach(model, one), steer.attach(model, two):
        assert torch.equal(model(ids).logits, truth)


def test_report_counts_rows_and_measures_change() -> None:
    model, ids = tiny_llama(), tokens(2, 6)
    half = steer.Intervention(sites.resid_out(layers=1, positions=positions.span(1, 4)), ops.Scale(0.5), name="half")
    with steer.attach(model, half, measure="all") as session:
        model(ids)
        model(ids)
    (line,) = session.report().lines
    assert (line.calls, line.rows) == (2, 2 * 2 * 3)
    assert line.mean_change == pytest.approx(0.5)
    assert line.max_change == pytest.approx(0.5)
    assert json.loads(session.report().to_json())["interventions"][0]["name"] == "half"
    assert "half" in str(session.report())


def test_silence_is_an_error_unless_allowed() -> None:
    model, ids = tiny_llama(), tokens(1, 4)
    far = steer.Intervention(sites.resid_out(positions=positions.index(100)), ops.Scale(0.5), name="far away")
    with pytest.raises(NeverFiredError, match="far away"), steer.attach(model, far):
        model(ids)
    with steer.attach(model, far, strict=False) as session:
        model(ids)
    assert session.report().never_fired() == ["far away"]
    nowhere = steer.Intervention(
        sites.resid_out(positions=positions.mask(torch.zeros(1, 4, dtype=torch.bool))), ops.Scale(0.5)
    )
    with pytest.raises(NeverFiredError), steer.attach(model, nowhere):
        model(ids)


def test_an_error_inside_is_not_hidden_by_silence() -> None:
    with pytest.raises(KeyError), steer.attach(tiny_llama(), steer.Intervention(sites.resid_out(), ops.Scale(0.5))):
        raise KeyError("theirs")


def test_two_threads_on_two_models_do_not_meet() -> None:
    models = [tiny_llama(seed) for seed in (0, 1)]
    ids, v = tokens(), randn(WIDTH)
    change = steer.Intervention(sites.head_q(), ops.Scale(1.1)), steer.Intervention(sites.resid_out(), ops.Add(v))
    truths = []
    for model in models:
        with steer.attach(model, *change):
            truths.append(model(ids).logits)
    wrong: list[object] = []
    barrier = threading.Barrier(2)

    def work(model, truth) -> None:
        barrier.wait()
        for _ in range(20):
            with steer.attach(model, *change):
                if not torch.equal(model(ids).logits, truth):
                    wrong.append(model)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, truths, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_two_threads_on_one_model_get_a_clear_error() -> None:
    model, caught = tiny_llama(), []

    def work() -> None:
        try:
            with steer.attach(model):
                pass
        except SessionError as error:
            caught.append(str(error))

    with steer.attach(model):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert "another thread" in caught[0]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("make", "error", "facts"),
    [
        (lambda: sites.Site("resid_uot"), UnknownNameError, ["resid_uot", "resid_out"]),
        (lambda: sites.resid_out(layers=7), UnknownNameError, ["7", "0, 1, 2", "text"]),
        (lambda: sites.resid_out(tower="visoin"), UnknownNameError, ["visoin", "text"]),
        (lambda: sites.head_out(heads=8), UnknownNameError, ["8", "head"]),
        (lambda: sites.head_k(heads=2), UnknownNameError, ["2", "0, 1"]),
        (lambda: sites.head_out(heads=[1, 1]), InterventionError, ["twice"]),
        (lambda: sites.head_out(layers=[]), InterventionError, ["empty"]),
        (lambda: sites.head_out(heads=[]), InterventionError, ["empty", "layer 0", "8"]),
        (lambda: sites.resid_out(layers="last"), InterventionError, ["'last'", '"all"']),
        (lambda: sites.head_out(heads="first"), InterventionError, ["'first'", '"all"']),
        (lambda: sites.Site("resid_out", heads=0), InterventionError, ["resid_out", "no heads"]),
        (lambda: sites.resid_out(positions="last"), InterventionError, ["'last'", "steer.positions"]),
        (lambda: sites.attn_out(attention="cross"), MappingError, ["cross-attention", "none"]),
        (lambda: sites.head_q(attention="cross", layers=1), MappingError, ["layer 1"]),
    ],
)
def test_wrong_addresses_say_what_was_asked_and_what_exists(make, error, facts) -> None:
    model = tiny_llama()
    with pytest.raises(error) as caught, steer.attach(model, steer.Intervention(make(), ops.Scale(0.5))):
        pass
    for fact in facts:
        assert fact in str(caught.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_branch_that_a_layer_does_not_have_is_named() -> None:
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4))
    with pytest.raises(MappingError, match=r"'mlp_out' does not exist in backbone\.layers\.0"):
        steer.attach(model, scaled(sites.mlp_out())).__enter__()


def scaled(site) -> steer.Intervention:
    return steer.Intervention(site, ops.Scale(0.5))


def prefix(keys=(KV_HEADS, 1, HEAD_DIM), values=(KV_HEADS, 1, HEAD_DIM)) -> steer.Intervention:
    return steer.Intervention(sites.kv_prefix(), ops.Prefix(torch.zeros(keys), torch.zeros(values)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: steer.Intervention(sites.resid_out(), ops.LowRankQuery(torch.zeros(2, 2), torch.zeros(2, 2))),
        lambda: steer.Intervention(sites.resid_out(), ops.Scale(1.0), gates.Sigmoid(torch.zeros(3))),
        lambda: steer.Intervention(sites.cache(), ops.Apply(lambda k, v: None), gates.Given(torch.ones(1))),
        lambda: ops.Keep(lambda seen: None, every=0),
        lambda: ops.Keep(lambda seen: None, window=0),
        lambda: steer.Intervention("resid_out", ops.Scale(1.0)),
        lambda: steer.Intervention(sites.resid_out(), lambda x: x),
        lambda: steer.attach(tiny_llama(), "icv"),
        lambda: steer.attach(tiny_llama(), type(steer.create("icv"))),
        lambda: steer.attach("a model", steer.Intervention(sites.resid_out(), ops.Scale(1.0))),
        lambda: steer.attach(tiny_llama(), measure="sometimes"),
        lambda: steer.attach(tiny_llama(), prefix(keys=(HEADS, 1, HEAD_DIM))).__enter__(),
        lambda: steer.attach(tiny_llama(), prefix(values=(KV_HEADS, 2, HEAD_DIM))).__enter__(),
        lambda: steer.record(tiny_llama()),
        lambda: steer.record(tiny_llama(), "head_out"),
        lambda: steer.record(tiny_llama(), sites.call()).__enter__(),
        lambda: steer.record(tiny_llama(), sites.key_bias(positions.all())).__enter__(),
    ],
)
def test_malformed_requests_are_refused_before_anything_is_installed(make) -> None:
    with pytest.raises(InterventionError):
        make()


@pytest.mark.parametrize("make", [lambda model: steer.attach(model), lambda model: steer.record(model, sites.logits())])
def test_what_is_open_is_not_opened_again_and_what_is_closed_not_closed(make) -> None:
    block = make(tiny_llama())
    with block, pytest.raises(SessionError, match="again"):
        block.__enter__()
    with pytest.raises(SessionError, match="not open"):
        block.__exit__(None, None, None)


def test_an_output_without_names_is_refused_where_the_logits_are_wanted() -> None:
    model = tiny_llama()
    with pytest.raises(MappingError, match="return_dict=True"), steer.attach(model, scaled(sites.logits())):
        model(tokens(), return_dict=False)


def test_an_edit_of_a_cache_that_is_not_there_never_fires() -> None:
    model = tiny_llama()
    change = steer.Intervention(sites.cache(), ops.Apply(lambda keys, values: (keys * 2, values)))
    with pytest.raises(NeverFiredError), steer.attach(model, change):
        model(tokens(), use_cache=False)


def test_blip_writes_by_a_generate_of_its_own_what_the_logits_say() -> None:
    family = FAMILIES["blip"]
    model, shift = family.model(), torch.zeros(family.model().config.text_config.vocab_size)
    shift[7] = 1e4
    with steer.attach(model, steer.Intervention(sites.logits(), ops.Add(shift))):
        written = model.generate(**family.prompt(), max_new_tokens=4)
    assert written[0, -3:].tolist() == [7, 7, 7]


def test_a_function_that_changes_the_shape_is_named() -> None:
    change = steer.Intervention(sites.resid_out(layers=2), ops.Apply(lambda x: x[:, :1]))
    model = tiny_llama()
    with pytest.raises(ValueError, match="layer 2"), steer.attach(model, change):
        model(tokens())


def test_training_through_a_session_leaves_weights_without_gradients() -> None:
    model, ids = tiny_llama(), tokens()
    v = torch.zeros(LAYERS, WIDTH, requires_grad=True)
    with steer.attach(model, steer.Intervention(sites.resid_out(), ops.Add(v, keep_norm=True))):
        model(ids).logits.logsumexp(-1).sum().backward()
    assert v.grad is not None
    assert (v.grad.abs().sum(-1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_dtype(dtype) -> None:
    model, ids = tiny_llama().to(dtype), tokens()
    changes = [
        steer.Intervention(sites.resid_out(), ops.Add(randn(WIDTH), 0.1, keep_norm=True)),
        steer.Intervention(sites.head_q(), ops.LowRankQuery(randn(HEADS, HEAD_DIM, 2), randn(HEADS, HEAD_DIM, 2))),
        steer.Intervention(sites.key_bias(), ops.KeyBias(1.0, positions.span(1, 3))),
        steer.Intervention(sites.head_out(), ops.Add(randn(HEADS, HEAD_DIM)), gates.Sigmoid(randn(HEADS, HEAD_DIM))),
        steer.Intervention(sites.kv_prefix(), ops.Prefix(randn(KV_HEADS, 2, HEAD_DIM), randn(KV_HEADS, 2, HEAD_DIM))),
    ]
    with steer.attach(model, *changes):
        logits = model(ids).logits
    assert logits.dtype == dtype
    assert logits.isfinite().all()


@pytest.mark.parametrize("where", ["last_prompt", "answer", "prompt"])
def test_a_prompt_whose_beginning_is_in_the_cache_already_is_the_same_prompt(where) -> None:
    model, ids = tiny_llama().double(), tokens(2, 9)
    change = steer.Intervention(
        sites.resid_out(-1 % LAYERS, positions=getattr(positions, where)()), ops.Add(randn(WIDTH, scale=3.0))
    )

    def written(**more) -> torch.Tensor:
        with steer.attach(model, change):
            out = model.generate(
                ids, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True, **more
            )
        return torch.stack(out.logits)

    with torch.no_grad():
        past = model(ids[:, :6], use_cache=True).past_key_values
    torch.testing.assert_close(written(past_key_values=past), written())


@pytest.mark.parametrize("site", [sites.resid_out, sites.head_q])
def test_a_model_is_copied_before_or_after_a_session_and_not_inside_it(site) -> None:
    """A copy has the hooks of what it was made of, and nobody takes them off again."""
    model, ids = tiny_llama(), tokens()
    base = model(ids).logits
    with steer.attach(model, steer.Intervention(site(), ops.Scale(0.5)), strict=False):
        with steer.attach(model):
            pass
        with pytest.raises(SessionError, match="inside a session"):
            copy.deepcopy(model)
        shallow = copy.copy(model)
    for made in (copy.deepcopy(model), copy.deepcopy(shallow), pickle.loads(pickle.dumps(model))):
        assert torch.equal(made(ids).logits, base)


@pytest.mark.parametrize(
    "op",
    [
        ops.Add(torch.ones(7)),
        ops.Add(torch.ones(7), keep_norm=True),
        ops.Replace(torch.ones(7)),
        ops.Rotate(torch.ones(7), torch.arange(7.0), 0.1),
    ],
    ids=lambda op: type(op).__name__,
)
def test_a_vector_of_another_width_than_the_residual_stream_is_an_error_with_both_numbers(op) -> None:
    model = tiny_llama()
    with pytest.raises(InterventionError, match=rf"resid_out text layer 1: .* {WIDTH} numbers, and the vector .* 7"):
        with steer.attach(model, steer.Intervention(sites.resid_out([1]), op), strict=False):
            model(tokens())
