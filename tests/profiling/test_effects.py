"""Effects of heads against one head at a time by hand, against a closed form, and first order against the limit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

import steer
from steer import fitting, sites
from steer.profiling import Means, by_layer, effects, patching, prefix, scores
from steer.prompts import Batch, Prompt
from tests.engine.families import FAMILIES, IMAGE, text
from tests.engine.helpers import tiny_llama
from tests.vectors.subjects import SUBJECTS, PictureProcessor, subject

from .by_hand import answered, log_prob, replaced, result_at


@cache
def told(name: str) -> Any:
    """A subject; the text model with answers of one token and of two."""
    one = subject(name)
    if name != "llama":
        return one
    longer = [replace(e, answer=f"{e.answer} w{20 + i}") if i % 2 else e for i, e in enumerate(one.examples)]

    def by_hand(prompt: Prompt) -> dict[str, torch.Tensor]:
        words: list[int] = []
        for example in (*prompt.shots, prompt.query):
            question, answer = ([int(word[1:]) for word in t.split()] for t in (example.question, example.answer))
            words += [4, *question, 5, *(answer if example is not prompt.query or prompt.answered else [])]
        return {"input_ids": torch.tensor([words])}

    return SimpleNamespace(**{**vars(one), "examples": longer, "by_hand": by_hand})


def table_by_hand(one: Any, clean: list[Prompt], asked: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the answers: (n,) as they are, and (n, L, H) with each head replaced by its mean."""
    attentions = [layer.attention for layer in steer.inspect(one.model).tower().layers]
    modules = [one.model.get_submodule(attention.out_proj) for attention in attentions]
    before = torch.zeros(len(asked), dtype=torch.float64)
    after = torch.zeros(len(asked), len(modules), attentions[0].num_heads, dtype=torch.float64)
    for layer, (module, attention) in enumerate(zip(modules, attentions, strict=True)):
        ends = [one.by_hand(prompt) for prompt in clean]
        mean = torch.stack([result_at(module, one.model, inputs, -1) for inputs in ends]).mean(0)
        for i, prompt in enumerate(asked):
            inputs, answer, row = answered(one, prompt)
            before[i] = log_prob(one.model, inputs, answer)
            for head, value in enumerate(mean.view(attention.num_heads, -1)):
                after[i, layer, head] = log_prob(one.model, inputs, answer, replaced(row, head, value), module)
    return before, after


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize("name", SUBJECTS)
def test_every_head_is_as_by_hand(name, batch_size):
    one = told(name)
    demonstrations = steer.Demonstrations(tuple(one.examples), 2, seed=5)
    found = steer.profile(
        one.model,
        one.processor,
        one.examples[:3],
        measures=["ablation", "indirect_effect"],
        demonstrations=demonstrations,
        corrupt="remove",
        batch_size=batch_size,
        progress=False,
    )
    queries = one.examples[:3]
    clean = demonstrations.for_queries(queries)
    before, after = table_by_hand(one, clean, [Prompt(query) for query in queries])
    gained = after.exp() - before.exp()[:, None, None]
    was, ablated = table_by_hand(one, clean, clean)
    lost = was[:, None, None] - ablated
    for measure, truth in (("indirect_effect", gained), ("ablation", lost)):
        torch.testing.assert_close(found.values[measure].double(), truth.mean(0), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.errors[measure].double(), truth.std(0) / 3**0.5, rtol=0, atol=1e-5)
        assert truth.abs().max() > 1e-3
    assert (found.n, found.measures) == (3, ("indirect_effect", "ablation"))


def deciding(layer: int, head: int) -> Any:
    """A Llama in which nothing reaches the answer but what one head writes, besides the last word itself."""
    model = tiny_llama(pad_token_id=None)
    for i, block in enumerate(model.model.layers):
        block.mlp.down_proj.weight.zero_()
        kept = block.self_attn.o_proj.weight[:, 12 * head : 12 * head + 12].clone()
        block.self_attn.o_proj.weight.zero_()
        if i == layer:
            block.self_attn.o_proj.weight[:, 12 * head : 12 * head + 12] = 4 * kept
    return model


def closed(model: Any, layer: int, head: int, result: torch.Tensor, last: int, answer: int) -> torch.Tensor:
    """p(answer), by hand in fp64, from what that head gives (d_v,) and the last word."""
    weight = model.model.layers[layer].self_attn.o_proj.weight.double()[:, 12 * head : 12 * head + 12]
    x = model.model.embed_tokens.weight.double()[last] + weight @ result.double()
    x = x / (x.square().mean() + model.config.rms_norm_eps).sqrt() * model.model.norm.weight.double()
    return (model.lm_head.weight.double() @ x).softmax(-1)[answer]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("layer", "head"), [(0, 7), (1, 2), (2, 0)])
def test_one_head_that_decides_has_its_effect_and_all_others_none(layer, head, gradient):
    model, one = deciding(layer, head), subject("llama")
    examples = one.examples
    options = {"demonstrations": steer.Demonstrations(tuple(examples), 3), "gradient": gradient, "progress": False}
    found = steer.profile(model, one.processor, examples, corrupt="remove", **options)
    clean = options["demonstrations"].for_queries(examples)
    module = model.model.layers[layer].self_attn.o_proj
    heads = slice(12 * head, 12 * head + 12)
    mean = torch.stack([result_at(module, model, one.by_hand(p), -1)[heads] for p in clean]).mean(0)
    truth = []
    for example in examples:
        inputs = one.by_hand(Prompt(example))
        own = result_at(module, model, inputs, -1)[heads].double().requires_grad_(True)
        last, answer = int(inputs["input_ids"][0, -1]), int(example.answer[1:])
        before = closed(model, layer, head, own, last, answer)
        if gradient:
            (slope,) = torch.autograd.grad(before, own)
            truth.append(float((slope * (mean.double() - own)).sum()))
        else:
            truth.append(float(closed(model, layer, head, mean, last, answer) - before))
    values = found.values["indirect_effect"]
    assert float(values[layer, head]) == pytest.approx(sum(truth) / len(truth), rel=1e-3, abs=1e-7)
    assert abs(float(values[layer, head])) > 1e-4
    values[layer, head] = 0
    assert float(values.abs().max()) < 1e-7


@pytest.mark.parametrize("scale", ["probability", "log_probability"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_first_order_is_the_limit_of_small_replacements(name, scale):
    one = told(name)
    prompts = [Prompt(e) for e in one.examples[:2]]
    shown = [Prompt(e, tuple(one.examples[4:6])) for e in one.examples[:2]]

    def make(some: list[Prompt]) -> Batch:
        return steer.prompts.encode(one.model, one.processor, some)

    means = {k.layer: r.mean(0) for k, r in fitting.states(one.model, [make(shown)], sites.head_out()).items()}
    value, estimates = patching.first_order(one.model, make(prompts), means, scale)
    for i, prompt in enumerate(prompts):
        own = {k.layer: r[0] for k, r in fitting.states(one.model, [make([prompt])], sites.head_out()).items()}
        wrong = []
        for step in (0.2, 0.02):
            near = {layer: own[layer] + step * (mean - own[layer]) for layer, mean in means.items()}
            before, after = effects(one.model, make([prompt]), near)
            now, was = (s.log_prob if scale == "log_probability" else s.log_prob.exp() for s in (after, before))
            assert float(was) == pytest.approx(float(value[i]), rel=1e-4)
            wrong.append(float(((now - was) / step - estimates[i]).abs().max() / estimates[i].abs().max()))
        # What is left falls as fast as the step, down to what fp32 cannot tell of so small a difference.
        assert wrong[1] < 0.2 * wrong[0] + 0.005
        assert wrong[1] < 0.1


# Families by the way their heads reach the answer: other attentions, layers without heads, a decoder of its own.
WAYS = [("llava", "self"), ("qwen3_5", "self"), ("mllama", "self"), ("mllama", "cross"), ("florence2", "self"),
        ("florence2", "cross"), ("blip", "self")]  # fmt: skip


@pytest.mark.parametrize(("name", "attention"), WAYS)
def test_every_family_is_as_by_hand(name, attention):
    family = FAMILIES[name]
    model, inputs = family.model(), family.prompt(6)
    places = steer.inspect(model).targets(sites.head_out(attention=attention))
    generator = torch.Generator().manual_seed(0)
    means: Means = {
        one.layer.index: torch.randn(one.attention.num_heads, one.attention.value_dim, generator=generator)
        for one in places
    }
    before, after = effects(model, Batch(inputs, torch.tensor([[7]])), means, batch_size=5, attention=attention)
    given, row = dict(inputs), -1
    if name == "florence2":
        given["decoder_input_ids"] = torch.tensor([[model.config.text_config.decoder_start_token_id]])
    assert float(before.log_prob) == pytest.approx(log_prob(model, given, [7]), abs=1e-5)
    truth = [
        log_prob(model, given, [7], replaced(row, head, value), model.get_submodule(one.attention.out_proj))
        for one in places
        for head, value in enumerate(means[one.layer.index])
    ]
    torch.testing.assert_close(after.log_prob.double(), torch.tensor(truth).double(), rtol=0, atol=1e-5)
    assert (after.log_prob - before.log_prob).abs().max() > 1e-3
    _, estimates = patching.first_order(model, Batch(inputs, torch.tensor([[7]])), means, "log_probability", attention)
    assert estimates.shape == (1, len(truth))
    assert 0 < float(estimates.abs().max()) < torch.inf


def test_sets_of_heads_are_replaced_together():
    one = subject("llama")
    prompt = Prompt(one.examples[0])
    batch = steer.prompts.encode(one.model, one.processor, [prompt])
    means = {layer: torch.randn(8, 12, generator=torch.Generator().manual_seed(layer)) for layer in range(3)}
    sets = torch.zeros(2, 24, dtype=torch.bool)
    sets[1, [1, 8 + 3, 16 + 7]] = True
    found = scores(one.model, batch, means, sets)
    inputs, answer, row = answered(one, prompt)
    hooks = [(0, 1), (1, 3), (2, 7)]
    handles = [
        one.layers[i].self_attn.o_proj.register_forward_pre_hook(replaced(row, h, means[i][h])) for i, h in hooks
    ]
    try:
        truth = log_prob(one.model, inputs, answer)
    finally:
        for handle in handles:
            handle.remove()
    assert found.log_prob.tolist() == pytest.approx([log_prob(one.model, inputs, answer), truth], abs=1e-5)


def test_layers_of_different_sizes_leave_places_empty():
    means = {0: torch.zeros(2, 3), 2: torch.zeros(4, 5)}
    table = by_layer(torch.arange(6.0), means, 4)
    nan = torch.nan
    expected = torch.tensor([[0, 1, nan, nan], [nan] * 4, [2, 3, 4, 5], [nan] * 4])
    torch.testing.assert_close(table, expected, equal_nan=True)
    assert by_layer(torch.zeros(7, 6), means).shape == (7, 3, 4)


def test_layers_without_heads_are_empty_in_a_profile():
    one = subject("qwen2_5_vl")
    model = FAMILIES["qwen3_5"].model()
    found = steer.profile(
        model, PictureProcessor(), one.examples, measures=["attention", "ablation"], samples=2, progress=False
    )
    softmax = [layer.attention.kind == "softmax" for layer in steer.inspect(model).tower().layers]
    assert softmax == [False, False, False, True]
    image = found.values["attention_image"]
    assert image[:3].isnan().all()
    assert ((image[3] > 0) & (image[3] < 1)).all()
    assert found.values["ablation"].isfinite()[3].all()


def paligemma() -> tuple[Any, dict[str, torch.Tensor]]:
    """A model whose prompt is read in both directions, and a prompt for it."""
    torch.manual_seed(0)
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = hf.PaliGemmaConfig(
        text_config={"model_type": "gemma", **text(3), "head_dim": 8},
        vision_config={"model_type": "siglip_vision_model", **vision, "image_size": 16, "patch_size": 8},
        image_token_index=IMAGE,
        projection_dim=32,
    )
    model = hf.PaliGemmaForConditionalGeneration(config).eval().requires_grad_(False)
    ids = torch.tensor([[*[IMAGE] * 4, 1, 7, 30, 12, 40]])
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    kinds = torch.zeros_like(ids)
    return model, {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "token_type_ids": kinds,
    }


def test_a_prompt_that_is_read_in_both_directions_is_read_whole():
    model, inputs = paligemma()
    batch = Batch(inputs, torch.tensor([[7]]))
    assert prefix.divided(model, batch) is None
    means = {layer: torch.randn(4, 8, generator=torch.Generator().manual_seed(layer)) for layer in range(3)}
    _, after = effects(model, batch, means)
    truth = [
        log_prob(model, inputs, [7], replaced(-1, head, value), layer.self_attn.o_proj)
        for layer, values in zip(model.model.language_model.layers, means.values(), strict=True)
        for head, value in enumerate(values)
    ]
    torch.testing.assert_close(after.log_prob.double(), torch.tensor(truth).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_but_the_last_token_is_read_once_where_there_is_a_cache(name, monkeypatch):
    family = FAMILIES[name]
    model, batch = family.model(), Batch(family.prompt(6), torch.tensor([[7, 9]]))
    once = prefix.divided(model, batch) is not None
    assert once == (name not in ("florence2", "blip"))
    if not once:
        return
    means = {
        one.layer.index: torch.zeros(one.attention.num_heads, one.attention.value_dim)
        for one in steer.inspect(model).targets(sites.head_out())
    }
    lengths = []
    embedding = model.get_input_embeddings()
    with embedding.register_forward_hook(lambda module, args, out: lengths.append(tuple(args[0].shape))):
        fast = effects(model, batch, means, batch_size=4)
    length, total = batch.inputs["input_ids"].shape[1], sum(map(len, means.values())) + 1
    rows = [4] * (total // 4) + [total % 4] * (total % 4 > 0)
    # The prompt twice, to see that the two ways agree; then its last token and the answer's first, for every set.
    assert lengths == [(1, length - 1), (1, length), *((some, 2) for some in rows)]
    monkeypatch.setattr(patching, "divided", lambda model, query: None)
    slow = effects(model, batch, means, batch_size=4)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one.log_prob, other.log_prob, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.first_log_prob, other.first_log_prob, rtol=1e-4, atol=1e-5)
