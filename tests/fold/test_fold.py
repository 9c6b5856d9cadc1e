"""A folded checkpoint, reloaded by transformers alone, gives what the session gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf

import steer
from steer import gates, ops, positions, sites
from tests.engine.families import FAMILIES, IMAGE
from tests.engine.helpers import HEAD_DIM, HEADS, LAYERS, WIDTH, randn, tiny_llama, tokens


def add(site: sites.Site, *shape: int, seed: int = 0, **options: Any) -> steer.Intervention:
    return steer.Intervention(site, ops.Add(randn(*shape, seed=seed), **options))


def reloaded(folded: steer.Folded, folder: Any, auto: Any = hf.AutoModelForCausalLM) -> Any:
    folded.save_pretrained(folder)
    return auto.from_pretrained(folder).eval()


def steered(model: Any, items: Any, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), steer.attach(model, items):
        return model(**inputs).logits


@torch.no_grad()
def logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs).logits


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (got.float() - wanted.float()).abs().max() <= tolerance * wanted.float().abs().max()


WHERE = {
    "heads of two layers": lambda: [add(sites.head_out([0, 2], heads=[1, 5]), 2, 2, HEAD_DIM, scale=0.7)],
    "every head": lambda: [add(sites.head_out(), LAYERS, HEADS, HEAD_DIM, scale=0.3)],
    "attn_out": lambda: [add(sites.attn_out(1), WIDTH)],
    "mlp_out": lambda: [add(sites.mlp_out([-1, 0]), 2, WIDTH)],
    "resid_out": lambda: [add(sites.resid_out(positions=positions.all()), WIDTH, scale=torch.tensor([0.5, -1.0, 2.0]))],
    "resid_in": lambda: [add(sites.resid_in([2, 1]), 2, WIDTH)],
    "all at once, two at one module": lambda: [
        add(sites.head_out(1), HEAD_DIM),
        add(sites.attn_out(1), WIDTH, seed=1),
        add(sites.mlp_out(0), WIDTH, seed=2),
        add(sites.resid_out(0), WIDTH, seed=3),
        add(sites.resid_in(1), WIDTH, seed=4),
    ],
}


@pytest.mark.parametrize("name", WHERE)
def test_a_llama_reloaded_without_steer_gives_the_sessions_logits(name, tmp_path):
    model, items, ids = tiny_llama(), WHERE[name](), tokens()
    padded = torch.ones_like(ids)
    padded[0, :3] = 0
    made = reloaded(steer.fold(model, items), tmp_path)
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": padded}):
        wanted = steered(model, items, **inputs)
        assert (wanted - logits(model, **inputs)).abs().max() > 0.05
        close(logits(made, **inputs), wanted)


def test_the_biases_are_what_the_equations_say():
    """W_O v for heads, read from the weight; v itself at the other sites; zeros where a switch brings more."""
    model = tiny_llama()
    heads, added = randn(HEADS, HEAD_DIM), randn(WIDTH, seed=1)
    items = [
        steer.Intervention(sites.head_out(1), ops.Add(heads)),
        steer.Intervention(sites.mlp_out(2), ops.Add(added)),
    ]
    folded = steer.fold(model, items)
    layers = folded.model.model.layers
    truth = layers[1].self_attn.o_proj.weight.double() @ heads.double().flatten()
    close(layers[1].self_attn.o_proj.bias, truth, 1e-6)
    assert torch.equal(layers[2].mlp.down_proj.bias, added)
    rest = {name: p for name, p in folded.model.named_parameters() if name.endswith("bias")}
    assert set(folded.biases) == {"model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj"}
    assert all(not p.any() for name, p in rest.items() if name.removesuffix(".bias") not in folded.biases)
    assert folded.switches == {"attention_bias": True, "mlp_bias": True}
    assert folded.difference < 1e-5 < folded.effect


def test_only_the_switch_that_is_needed_is_turned():
    assert steer.fold(tiny_llama(), WHERE["attn_out"]()).switches == {"attention_bias": True}
    assert steer.fold(tiny_llama(), WHERE["mlp_out"]()).switches == {"mlp_bias": True}


def test_the_given_model_stays_as_it_is_and_its_tensors_are_shared():
    model = tiny_llama(tie_word_embeddings=True)
    model.generation_config.max_new_tokens = 7
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    folded = steer.fold(model, WHERE["attn_out"]()).model
    assert model.config.to_dict() == config
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert folded.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert folded.lm_head.weight is folded.model.embed_tokens.weight
    assert folded.generation_config.max_new_tokens == 7
    assert type(folded) is type(model)


def test_a_bias_that_is_there_takes_the_shift_and_no_switch_is_turned(tmp_path):
    model = tiny_llama(attention_bias=True)
    torch.nn.init.normal_(model.model.layers[1].self_attn.o_proj.bias)
    before = model.model.layers[1].self_attn.o_proj.bias.clone()
    items = WHERE["attn_out"]()
    folded = steer.fold(model, items)
    assert folded.switches == {}
    assert torch.equal(model.model.layers[1].self_attn.o_proj.bias, before)
    close(logits(reloaded(folded, tmp_path), input_ids=tokens()), steered(model, items, input_ids=tokens()))


def test_a_double_model_is_folded_in_double():
    model, vector = tiny_llama().double(), randn(HEAD_DIM).double() / 3
    folded = steer.fold(model, steer.Intervention(sites.head_out(1, heads=5), ops.Add(vector))).model
    columns = slice(5 * HEAD_DIM, 6 * HEAD_DIM)
    truth = model.model.layers[1].self_attn.o_proj.weight[:, columns] @ vector
    assert (folded.model.layers[1].self_attn.o_proj.bias - truth).abs().max() < 1e-14


class Hidden(torch.nn.Linear):
    """A layer whose weight says nothing by itself, as a quantised one's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.flip(0) * 0.5, self.bias)


def test_a_projection_is_called_and_never_read():
    model = tiny_llama(attention_bias=True)
    for layer in model.model.layers:
        layer.self_attn.o_proj.__class__ = Hidden
    items = WHERE["every head"]()
    folded = steer.fold(model, items).model
    close(logits(folded, input_ids=tokens()), steered(model, items, input_ids=tokens()))


def test_a_model_spread_by_accelerate_is_folded():
    accelerate = pytest.importorskip("accelerate.hooks")
    model = tiny_llama()
    for layer in model.model.layers:
        accelerate.add_hook_to_module(layer, accelerate.AlignDevicesHook("cpu", io_same_device=True))
    items = WHERE["all at once, two at one module"]()
    folded = steer.fold(model, items).model
    close(logits(folded, input_ids=tokens()), steered(model, items, input_ids=tokens()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_bias_and_no_more(dtype, tmp_path):
    """The checkpoint is as near to the same session in fp32 as the session in half precision is."""
    items = [add(sites.head_out([0, 2]), HEAD_DIM), add(sites.resid_out(1), WIDTH)]
    model = tiny_llama().to(dtype)
    truth = steered(copy.deepcopy(model).float(), items, input_ids=tokens())
    session = steered(model, items, input_ids=tokens()).float()
    made = reloaded(steer.fold(model, items), tmp_path)
    assert {p.dtype for p in made.parameters()} == {dtype}
    got = logits(made, input_ids=tokens()).float()
    assert (got - truth).norm() <= 1.5 * (session - truth).norm()
    assert (got - session).norm() <= 2e-2 * session.norm()


def test_a_vlm_with_a_picture_and_what_it_writes(tmp_path):
    """The field is the text tower's, inside the config."""
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    items = [add(sites.head_out(1), 8), add(sites.resid_out(0), 32, scale=0.3)]
    folded = steer.fold(model, items)
    assert folded.switches == {"text_config.attention_bias": True, "text_config.mlp_bias": True}
    made = reloaded(folded, tmp_path, hf.AutoModelForImageTextToText)
    close(logits(made, **inputs), steered(model, items, **inputs))
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
    with steer.attach(model, items):
        wanted = model.generate(**inputs, **options)
    assert torch.equal(made.generate(**inputs, **options), wanted)


def test_the_shipped_model_answers_alike_with_its_processor_beside_it(tmp_path):
    model, processor = steer.zoo.load()
    items = add(sites.head_out(), 4, 1, steer.inspect(model).tower().layers[0].attention.value_dim)
    steer.fold(model, items).save_pretrained(tmp_path, processor)
    made = hf.AutoModelForImageTextToText.from_pretrained(tmp_path)
    queries = [steer.prompts.Prompt(one) for one in steer.zoo.examples("plain:colour", n=4)]
    batch = steer.prompts.encode(model, hf.AutoProcessor.from_pretrained(tmp_path), queries)
    close(logits(made, **batch.inputs), steered(model, items, **batch.inputs))


def test_another_tower_is_folded_when_the_inputs_reach_it(tmp_path):
    family = FAMILIES["llava"]
    model, inputs = family.model(), family.prompt()
    item = add(sites.mlp_out(1, tower="vision"), 24)
    with pytest.raises(steer.SteerError, match="inputs="):
        steer.fold(model, item)
    made = reloaded(steer.fold(model, item, inputs=inputs), tmp_path, hf.AutoModelForImageTextToText)
    close(logits(made, **inputs), steered(model, item, **inputs))


class Constant(steer.Method):
    """A method that adds one vector everywhere."""

    name, paper, summary = "constant", "https://example.org", "Adds a constant."

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        return WHERE["resid_out"]()


def test_methods_interventions_and_lists_fold_together(tmp_path):
    model, items = tiny_llama(), [Constant(), add(sites.head_out(0), HEAD_DIM), WHERE["mlp_out"]()]
    made = reloaded(steer.fold(model, *items), tmp_path)
    with steer.attach(model, *items):
        wanted = logits(model, input_ids=tokens())
    close(logits(made, input_ids=tokens()), wanted)


NOT_CONSTANT = {
    "gate": (lambda: steer.Intervention(sites.resid_out(0), ops.Add(randn(WIDTH)), gates.Cosine()), "gates.Cosine"),
    "length kept": (lambda: add(sites.resid_out(0), WIDTH, keep_norm=True), "keep_norm"),
    "relative": (lambda: add(sites.resid_out(0), WIDTH, relative=True), "relative"),
    "positions": (lambda: add(sites.resid_out(0, positions=positions.answer()), WIDTH), "positions.answer"),
    "replace": (lambda: steer.Intervention(sites.resid_out(0), ops.Replace(randn(WIDTH))), "ops.Replace"),
    "query": (
        lambda: steer.Intervention(sites.head_q(0), ops.LowRankQuery(randn(HEAD_DIM, 2), randn(HEAD_DIM, 2))),
        "ops.LowRankQuery",
    ),
    "prefix": (
        lambda: steer.Intervention(sites.kv_prefix(0), ops.Prefix(randn(2, 3, HEAD_DIM), randn(2, 3, HEAD_DIM))),
        "ops.Prefix",
    ),
    "values": (lambda: add(sites.head_v(0), HEAD_DIM), "head_v"),
    "embeddings": (lambda: add(sites.embeddings(), WIDTH), "embeddings"),
    "first input": (lambda: add(sites.resid_in(0), WIDTH), "first layer"),
}


@pytest.mark.parametrize("name", NOT_CONSTANT)
def test_what_is_no_constant_is_refused_by_name(name):
    make, why = NOT_CONSTANT[name]
    item = make()
    with pytest.raises(steer.SteerError) as raised:
        steer.fold(tiny_llama(), add(sites.attn_out(0), WIDTH), item)
    assert item.label in str(raised.value)
    assert why in str(raised.value)


@pytest.mark.parametrize("site", [sites.resid_out(0), sites.attn_out(0), sites.head_out(0)], ids=lambda site: site.name)
def test_a_vector_of_the_wrong_width_is_refused(site):
    with pytest.raises(steer.SteerError, match=r"shape \[\d"):
        steer.fold(tiny_llama(), add(site, WIDTH + 1))


def test_models_that_cannot_be_folded_now_say_so():
    item = add(sites.resid_out(0), WIDTH)
    model = tiny_llama()
    with steer.attach(model, strict=False), pytest.raises(steer.errors.SessionError, match="session"):
        steer.fold(model, item)
    with pytest.raises(steer.SteerError, match="eval"):
        steer.fold(model.train(), item)
    with torch.device("meta"):
        empty = hf.LlamaForCausalLM(model.config).eval()
    with pytest.raises(steer.SteerError, match="in memory"):
        steer.fold(empty, item)
    with pytest.raises(steer.SteerError, match="transformers model"):
        steer.fold(torch.nn.Sequential(model.eval()), item)
    with pytest.raises(steer.SteerError, match="nothing to fold"):
        steer.fold(model.eval())


def test_zero_shifts_fold_to_the_same_model():
    folded = steer.fold(tiny_llama(), steer.Intervention(sites.resid_out(), ops.Add(torch.zeros(WIDTH))))
    assert (folded.difference, folded.effect) == (0, 0)


class Bare(torch.nn.Module):
    """A layer of somebody's own in the place of a linear one: weights, and no bias."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.weight = linear.in_features, linear.out_features, linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


@pytest.mark.parametrize(
    ("layer", "name", "said"), [(1, "q_proj", "merge adapters into the weights"), (0, "o_proj", "no bias of its own")]
)
def test_layers_that_transformers_did_not_build_are_named(layer, name, said):
    model = tiny_llama()
    attention = model.model.layers[layer].self_attn
    setattr(attention, name, Bare(getattr(attention, name)))
    with pytest.raises(steer.SteerError, match=f"layers.{layer}.self_attn.{name} is a Bare, .*{said}"):
        steer.fold(model, add(sites.head_out(0), HEAD_DIM))


def test_two_shifts_of_one_bias_must_have_one_width():
    with pytest.raises(steer.SteerError, match=rf"shape \[{WIDTH + 1}\] at "):
        steer.fold(tiny_llama(), add(sites.attn_out(0), WIDTH), add(sites.attn_out(0), WIDTH + 1))


class Asking(hf.LlamaForCausalLM):
    """Is built from more than its config, and runs on more than token ids."""

    def __init__(self, config: Any, more: int) -> None:
        super().__init__(config)

    def forward(self, input_ids: torch.Tensor, picture: Any = None, **inputs: Any) -> Any:
        if picture is None:
            raise ValueError("show me a picture")
        return super().forward(input_ids, **inputs)


def test_models_that_cannot_be_tried_or_built_say_so():
    model, item = Asking(tiny_llama().config, 1).eval(), add(sites.attn_out(0), WIDTH)
    with pytest.raises(steer.SteerError, match=r"Asking does not run on made-up input_ids.*show me a picture.*inputs="):
        steer.fold(model, item)
    with pytest.raises(steer.SteerError, match="Asking cannot be built from its config"):
        steer.fold(model, item, inputs={"input_ids": tokens(), "picture": 1})


class Silent(hf.LlamaForCausalLM):
    """Keeps what it finds to itself."""

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> None:
        super().forward(input_ids, **inputs)


def test_a_model_without_outputs_cannot_be_tried():
    with pytest.raises(steer.SteerError, match="Silent gave no outputs to compare"):
        steer.fold(Silent(tiny_llama().config).eval(), add(sites.attn_out(0), WIDTH))


def test_heads_that_the_inputs_do_not_reach_are_said():
    model = FAMILIES["llava"].model()
    width = steer.inspect(model).tower("vision").layers[0].attention.value_dim
    with pytest.raises(steer.SteerError, match="cannot be tried on these inputs: .*Give inputs= that reach it"):
        steer.fold(model, add(sites.head_out(0, tower="vision"), width))


def test_inputs_are_made_up_for_a_model_of_pictures_and_for_an_encoder_decoder(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = hf.CLIPVisionModel(hf.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)).eval()
    pixels = {"pixel_values": randn(2, 3, 8, 8)}
    item = add(sites.mlp_out(0, tower="vision"), 32)
    with torch.no_grad(), steer.attach(vision, item):
        wanted = vision(**pixels).last_hidden_state
    folded = steer.fold(vision, item)
    assert folded.effect > 0
    with torch.no_grad():
        close(folded.model(**pixels).last_hidden_state, wanted)
    layers = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    writes = hf.BartForConditionalGeneration(hf.BartConfig(d_model=32, vocab_size=101, **layers)).eval()
    inputs = {"input_ids": tokens(), "decoder_input_ids": tokens(seed=1)}
    item = add(sites.head_out(1), 4, 8)
    made = reloaded(steer.fold(writes, item), tmp_path, hf.AutoModelForSeq2SeqLM)
    close(logits(made, **inputs), steered(writes, item, **inputs))
