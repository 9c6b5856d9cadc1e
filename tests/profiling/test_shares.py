"""Shares of attention against the weights that eager attention hands out, summed over the same keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from steer.errors import MappingError
from steer.profiling import shares as subject
from steer.prompts import Batch
from tests.engine.families import FAMILIES, IMAGE, text
from tests.engine.helpers import tiny_llama

WORDS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "sliding_window": 4}


def mistral(implementation: str) -> Any:
    """Grouped queries and a window that ends inside the prompt."""
    torch.manual_seed(0)
    config = hf.MistralConfig(**text(3), **WORDS, attn_implementation=implementation)
    return hf.MistralForCausalLM(config).eval()


def gemma2(implementation: str) -> Any:
    """Capped scores, and a window in every other layer; it has eager attention only."""
    torch.manual_seed(0)
    config = hf.Gemma2Config(**text(4), **WORDS, head_dim=8, attn_implementation="eager")
    return hf.Gemma2ForCausalLM(config).eval()


def gpt_oss(implementation: str) -> Any:
    """Sinks, which take attention away from every token; it has eager attention only."""
    torch.manual_seed(0)
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    config = hf.GptOssConfig(**text(2), **WORDS, **experts, **rope, attn_implementation="eager")
    model = hf.GptOssForCausalLM(config).eval()
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks)
    return model


def llama(implementation: str) -> Any:
    return tiny_llama(implementation=implementation)


TEXT = {"llama": llama, "mistral": mistral, "gemma2": gemma2, "gpt_oss": gpt_oss}
# Which layers have softmax attention of their own.
PICTURED = {"llava": (0, 1), "qwen2_5_vl": (0, 1), "qwen3_5": (3,), "mllama": (0, 2)}


def two_rows(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The prompt, and before it the same without its last two words, padded on the left."""
    made = {name: torch.cat([value, value]) for name, value in inputs.items()}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "cross_attention_mask"):
        if name in made:
            made[name][0] = torch.cat([torch.zeros_like(made[name][0, :2]), made[name][0, :-2]])
    return made


def summed(weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(B, H, T, S) -> (B, H): what the last token gives to the chosen keys (B, S), of all that it gives to keys."""
    last = weights[:, :, -1].double()
    return (last * chosen[:, None]).sum(-1) / last.sum(-1)


def check(found: dict[int, torch.Tensor], weights: dict[int, torch.Tensor], image, shown) -> None:
    assert sorted(found) == sorted(weights)
    for layer, rows in found.items():
        truth = torch.stack([summed(weights[layer], one) for one in (image, ~image, shown)], dim=1)
        torch.testing.assert_close(rows.double(), truth, rtol=1e-4, atol=2e-6)
        assert truth[:, 2].min() > 0
        assert truth[:, 2].std() > 0.01


def demonstrations(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As if the first half of each row's tokens were demonstrations."""
    place = mask.cumsum(-1)
    return mask.bool() & (place <= place[:, -1:] // 2 + 1)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PICTURED)
def test_pictures_text_and_demonstrations(name, implementation):
    family = FAMILIES[name]
    inputs = two_rows(family.prompt(7))
    image = inputs["input_ids"] == IMAGE
    shown = demonstrations(inputs["input_ids"], inputs["attention_mask"])
    places = (inputs["attention_mask"].long().cumsum(-1) - 1).clamp_min(0)
    given = inputs if "mm_token_type_ids" in inputs else {**inputs, "position_ids": places}
    with torch.no_grad():
        weights = family.model("eager")(**given, output_attentions=True).attentions
    layers = PICTURED[name]
    truth = dict(zip(layers, weights, strict=True)) if len(weights) == len(layers) else {i: weights[i] for i in layers}
    found = subject.shares(family.model(implementation), Batch(inputs), shown, image, layers)
    check(found, truth, image, shown)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TEXT)
def test_windows_caps_and_groups(name, implementation):
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    inputs = two_rows({"input_ids": ids[:1], "attention_mask": torch.ones_like(ids[:1])})
    mask = inputs["attention_mask"]
    # Even ones, so that a window of four sees some and leaves some out.
    shown = mask.bool() & (torch.arange(9) % 2 == 0)
    with torch.no_grad():
        places = (mask.cumsum(-1) - 1).clamp_min(0)
        weights = TEXT[name]("eager")(**inputs, position_ids=places, output_attentions=True).attentions
    none = torch.zeros_like(shown)
    model = TEXT[name](implementation)
    found = subject.shares(model, Batch(inputs), shown, none, range(len(weights)))
    check(found, dict(enumerate(weights)), none, shown)
    assert (name == "llama") == (float(summed(weights[0], torch.arange(9)[None] < 4).max()) > 0)


def test_an_encoder_decoder_looks_at_the_encoders_tokens():
    family = FAMILIES["florence2"]
    model, inputs = family.model(), family.prompt(6)
    image = inputs["input_ids"] == IMAGE
    shown = torch.zeros_like(image)
    shown[:, 10:20] = True
    start = torch.tensor([[model.config.text_config.decoder_start_token_id]])
    with torch.no_grad():
        weights = family.model("eager")(**inputs, decoder_input_ids=start, output_attentions=True).cross_attentions
    found = subject.shares(model, Batch(inputs), shown, image, (0, 1), "cross")
    check(found, dict(enumerate(weights)), image, shown)
    none = subject.places(model, Batch(inputs), Batch(inputs), "self")
    own = subject.shares(model, Batch(inputs), *none, (0, 1), "self")
    assert all(torch.equal(rows[0], torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 4)) for rows in own.values())


def test_keys_that_are_no_tokens_are_told():
    family, none = FAMILIES["mllama"], torch.zeros(1, 7, dtype=torch.bool)
    with pytest.raises(MappingError, match="not at the prompt's tokens"):
        subject.shares(family.model(), Batch(family.prompt(5)), none, none, (1,), "cross")
    with pytest.raises(MappingError, match="looks at 7 keys where the prompt has 6"):
        subject.shares(family.model(), Batch(family.prompt(5)), none[:, 1:], none[:, 1:], (0,))


def test_a_result_that_is_no_mean_of_values_is_told():
    model = tiny_llama()
    projection = model.model.layers[1].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda module, args: (args[0] / args[0].norm(dim=-1, keepdim=True),))
    ids = torch.randint(3, 90, (1, 9), generator=torch.Generator().manual_seed(1))
    shown = torch.arange(9)[None] < 5
    with handle, pytest.raises(MappingError, match="layer 1 is not a weighted mean"):
        subject.shares(model, Batch({"input_ids": ids}), shown, torch.zeros_like(shown), range(3))


def test_demonstrations_are_what_the_bare_query_lacks():
    model = tiny_llama()
    # <bos> system | demonstrations | query; the second row is padded.
    whole = torch.tensor([[1, 7, 30, 31, 32, 33, 40, 41], [0, 0, 1, 7, 34, 35, 42, 41]])
    bare = torch.tensor([[1, 7, 40, 41], [1, 7, 42, 41]])
    batches = [Batch({"input_ids": ids, "attention_mask": (ids > 0).long()}) for ids in (whole, bare)]
    shown, image = subject.places(model, *batches, "self")
    assert torch.equal(shown, (whole >= 30) & (whole < 40))
    assert not image.any()
    shown, _ = subject.places(model, batches[1], batches[1], "self")
    assert not shown.any()
