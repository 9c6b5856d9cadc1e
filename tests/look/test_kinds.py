"""Looking at models of other kinds: dynamic resolution, tiles with a thumbnail, an encoder-decoder, cross-attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import steer
from steer.errors import MappingError
from steer.look import look, looking
from steer.prompts import Prompt, encode
from tests.engine.families import CLIP_VISION, FAMILIES, IMAGE, QWEN_VISION, ROPE, SPECIAL, text
from tests.engine.regions_processors import merging, noise, tiling, word_tokenizer

WORDS = text() | {"vocab_size": 200}
QUESTION = "what colour is it ?"


def qwen(token: int) -> nn.Module:
    config = hf.Qwen2_5_VLConfig(
        text_config=WORDS | SPECIAL | {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}},
        vision_config={**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
        image_token_id=token,
        video_token_id=197,
        vision_start_token_id=196,
        vision_end_token_id=195,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def idefics(token: int) -> nn.Module:
    vision = {**CLIP_VISION, "image_size": 32, "patch_size": 8}
    config = hf.Idefics3Config(
        image_token_id=token, scale_factor=2, text_config={"model_type": "llama", **WORDS}, vision_config=vision
    )
    return hf.Idefics3ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("build", "processor", "size", "views"), [(qwen, merging(), (40, 24), [15]), (idefics, tiling(), (64, 40), [16, 4])]
)
def test_the_map_is_eager_attention_over_the_pictures_tokens(build, processor, size, views) -> None:
    torch.manual_seed(0)
    model, picture = build(processor.image_token_id).eval(), noise(*size)
    found = look(model, processor, picture, QUESTION, max_new_tokens=2)
    inputs = encode(model, processor, [Prompt(steer.Example(QUESTION, images=(picture,)))]).inputs
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    image = inputs["input_ids"][0] == processor.image_token_id
    wanted = torch.cat([layer[0, :, -1] for layer in attentions])[:, image]
    torch.testing.assert_close(found.before.maps[0], wanted, atol=1e-5, rtol=1e-4)
    assert [len(one) for one in found.pictures[0].views] == views


def stand_in(family: Any, inputs: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A processor whose inputs are given, for models whose own cannot be built without a hub."""
    slots = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    monkeypatch.setattr(looking, "encode", lambda *args, **kwargs: SimpleNamespace(inputs=inputs))
    monkeypatch.setattr(looking, "footprints", lambda *args, **kwargs: (slots, torch.rand(len(slots), 4)))
    return SimpleNamespace(tokenizer=word_tokenizer(), image_token_id=IMAGE)


def test_an_encoder_decoder_is_looked_at_through_its_cross_attention(monkeypatch) -> None:
    family = FAMILIES["florence2"]
    inputs = family.prompt(6)
    processor = stand_in(family, inputs, monkeypatch)
    found = look(family.model(), processor, noise(32, 32), "x", heads=[(1, 2), (0, 3)], max_new_tokens=2)
    start = torch.tensor([[2]])
    with torch.no_grad():
        output = family.model("eager")(**inputs, decoder_input_ids=start, output_attentions=True)
    wanted = torch.stack([output.cross_attentions[layer][0, head, 0] for layer, head in found.heads])
    assert found.attention == "cross"
    torch.testing.assert_close(found.before.maps[0], wanted[:, :17], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.before.shares[:, 1], wanted[:, 17:].sum(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.before.probabilities, output.logits[0, -1].softmax(-1), atol=1e-5, rtol=1e-3)
    with pytest.raises(steer.SteerError, match="encoder"):
        look(family.model(), processor, noise(32, 32), "x", query="colour")


def test_cross_attention_over_keys_that_are_no_tokens_is_told(monkeypatch) -> None:
    family = FAMILIES["mllama"]
    processor = stand_in(family, family.prompt(), monkeypatch)
    with pytest.raises(MappingError, match="keys where the prompt has 7 tokens"):
        look(family.model(), processor, noise(16, 16), "x", attention="cross", max_new_tokens=1)
