"""Function vectors against hooks at the output projection: means, effects, the choice of heads, the sum."""

from __future__ import annotations

import pytest
import torch

import steer
from steer.fitting import hold_out
from steer.prompts import Prompt, draw, encode
from tests.engine.helpers import hand_hooked, tiny_llama

from .subjects import SUBJECTS, passing, subject

SMALL = {"shots": 3, "contexts": 6, "trials": 3, "heads": 4}


def attention(one, layer: int):
    return one.layers[layer].self_attn


def sizes(one) -> tuple[int, int]:
    """Query heads and the width of one as it enters the output projection."""
    config = one.model.config.get_text_config()
    width = attention(one, 0).o_proj.in_features
    return config.num_attention_heads, width // config.num_attention_heads


def mean_by_hand(one, layer: int, prompts: list[Prompt]) -> torch.Tensor:
    """(H, d): what enters a layer's output projection at the last token, averaged over prompts."""
    rows = [passing(attention(one, layer).o_proj, one.model, one.by_hand(prompt), before=True) for prompt in prompts]
    return torch.stack([x[0, -1] for x in rows]).mean(0).view(*sizes(one))


def effect_by_hand(one, layer: int, head: int, mean: torch.Tensor, prompts: list[Prompt]) -> float:
    """Mean over prompts of p(answer) with the head's slice of the last row replaced, minus p(answer)."""
    width = mean.shape[-1]

    def patch(x):
        x = x.clone()
        x[:, -1, head * width : (head + 1) * width] = mean[head]
        return x

    effects = []
    for prompt in prompts:
        inputs, answer = one.by_hand(prompt), one.by_hand(Prompt(prompt.query, prompt.shots, answered=True))
        token = answer["input_ids"][0, -1]
        with torch.no_grad():
            patched = hand_hooked(one.model, [(attention(one, layer).o_proj, patch, True)], **inputs)
            plain = one.model(**inputs).logits
        effects.append([float(x[0, -1].float().softmax(-1)[token]) for x in (patched, plain)])
    return sum(a - b for a, b in effects) / len(effects)


@pytest.mark.parametrize("name", SUBJECTS)
def test_effects_vector_and_heads_are_those_of_patching_by_hand(name):
    one = subject(name)
    method = steer.create("function_vector", **SMALL).fit(one.model, one.processor, one.examples, seed=2, batch_size=4)
    pool, _ = hold_out(one.examples, seed=2)
    contexts, trials = draw(pool, 6, 3, seed=2), draw(pool, 3, 3, seed=3, shuffle_answers=True)
    means = [mean_by_hand(one, layer, contexts) for layer in range(len(one.layers))]
    effects = method.tensors["effects"]
    assert effects.shape == (len(one.layers), sizes(one)[0])
    for layer, head in [(0, 0), (0, 3), (1, 1), (len(one.layers) - 1, 2)]:
        truth = effect_by_hand(one, layer, head, means[layer], trials)
        assert float(effects[layer, head]) == pytest.approx(truth, abs=1e-5)

    taken = [tuple(map(int, place)) for place in method.tensors["heads"]]
    ranked = sorted(
        ((float(effect), (layer, head)) for layer, row in enumerate(effects) for head, effect in enumerate(row)),
        reverse=True,
    )
    assert taken == [place for effect, place in ranked[:4] if effect > 0]

    total = torch.zeros_like(method.tensors["vector"])
    for layer, head in taken:
        width = means[layer].shape[-1]
        columns = attention(one, layer).o_proj.weight[:, head * width : (head + 1) * width]
        total += columns.detach().float() @ means[layer][head]
    torch.testing.assert_close(method.tensors["vector"], total, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("where", ["last_prompt", "answer"])
@pytest.mark.parametrize("name", SUBJECTS)
def test_it_is_added_after_the_chosen_layer(name, where):
    one = subject(name)
    method = steer.create("function_vector", **SMALL, layer=1, strength=2.0, where=where)
    method.fit(one.model, one.processor, one.examples)
    queries = one.examples[:3]
    inputs = encode(one.model, one.processor, [Prompt(query) for query in queries]).inputs
    options = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False}
    with steer.attach(one.model, method) as session:
        out = one.model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
    written = out.sequences[:, inputs["input_ids"].shape[1] :]
    for row, query in enumerate(queries):
        alone = one.by_hand(Prompt(query))
        length = alone["input_ids"].shape[1]
        added = 2.0 * method.tensors["vector"]

        def add(x, length=length, added=added):
            x = x.clone()
            x[:, length - 1 : length if where == "last_prompt" else None] += added
            return x

        longer = lengthened(alone, written[row, :2])
        with torch.no_grad():
            truth = hand_hooked(one.model, [(one.layers[1], add, False)], **longer)[0, length - 1 :]
        torch.testing.assert_close(torch.stack([x[row] for x in out.logits]).float(), truth, rtol=1e-3, atol=2e-3)
    assert sum(line.rows for line in session.report().lines) == 3 * (1 if where == "last_prompt" else 3)


def lengthened(inputs: dict[str, torch.Tensor], more: torch.Tensor) -> dict[str, torch.Tensor]:
    """One prompt's inputs with tokens after it."""
    made = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more[None]], dim=1)}
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            made[name] = torch.nn.functional.pad(inputs[name], (0, len(more)), value=value)
    return made


def test_the_sign_of_an_effect_counts():
    from steer_vectors.function_vector import top_heads

    effects = torch.tensor([[0.1, -5.0, 0.0], [0.3, 0.2, -0.1]])
    assert top_heads(effects, 2) == [(1, 0), (1, 1)]
    assert top_heads(effects, 6) == [(1, 0), (1, 1), (0, 0)]
    with pytest.raises(steer.SteerError, match="no head"):
        top_heads(-effects.abs(), 2)


def test_what_a_head_writes_is_its_columns_without_the_bias():
    from steer_vectors.function_vector import written

    model = tiny_llama(attention_bias=True)
    torch.nn.init.normal_(model.model.layers[1].self_attn.o_proj.bias)
    results = {(1, 3): torch.randn(12, generator=torch.Generator().manual_seed(0)), (0, 7): torch.ones(12)}
    truth = sum(
        model.model.layers[layer].self_attn.o_proj.weight[:, 12 * head : 12 * head + 12] @ result
        for (layer, head), result in results.items()
    )
    torch.testing.assert_close(written(model, results), truth)


def test_a_task_that_the_answers_words_give_away_needs_its_demonstrations_removed():
    """Any position among the answers tells tiny-vlm that positions are asked for: shuffling them hides nothing."""
    one, pool = subject("tiny-vlm"), steer.zoo.examples("position", "demo", n=16)
    shuffled, removed = (
        steer.fitting.score(one.model, [encode(one.model, one.processor, draw(pool, 16, k, shuffle_answers=True))])
        for k in (10, 0)
    )
    assert shuffled.accuracy > 0.7 > 0.3 > removed.accuracy
    settings = {"contexts": 16, "trials": 8}
    effects = [
        steer.create("function_vector", corrupt=how, **settings).fit(one.model, one.processor, pool).tensors["effects"]
        for how in ("shuffle", "remove")
    ]
    assert float(effects[1].max()) > float(effects[0].max())
