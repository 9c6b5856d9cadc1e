"""Two-stream models: how their streams are found, their halves run, and sessions on words, features and calls."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from torch.nn.functional import normalize

import steer
from steer import ops, sites
from steer.errors import MappingError, SteerError
from tests.prompts.families import FAMILIES, SLOTS, TEXT, VISION, random_weights
from tests.prompts.models import build, pictures, tokenizer

from .helpers import randn, tiny_llama
from .test_restore import traces

WIDTH = 20


@pytest.fixture(scope="module")
def clip() -> Any:
    return build("clip")


@pytest.fixture(scope="module")
def stream(clip: Any) -> steer.TwoStream:
    return steer.TwoStream(*clip)


class Product(hf.CLIPModel):
    """Scores by the plain product."""

    def forward(self, input_ids: Any = None, pixel_values: Any = None, attention_mask: Any = None) -> Any:
        texts = self.text_projection(self.text_model(input_ids, attention_mask).pooler_output)
        images = self.visual_projection(self.vision_model(pixel_values).pooler_output)
        return hf.utils.ModelOutput(similarity=images @ texts.T)


class Switched(hf.CLIPModel):
    """Scores by the cosine only where it is asked not to judge pairs; its scores lie the other way as well."""

    def forward(self, input_ids: Any = None, pixel_values: Any = None, judge: bool = True) -> Any:
        if judge:
            images = self.vision_model(pixel_values).pooler_output
            return hf.utils.ModelOutput(verdict=images @ self.text_model(input_ids).pooler_output[: len(images), :24].T)
        texts = self.text_projection(self.text_model(input_ids).pooler_output)
        images = self.visual_projection(self.vision_model(pixel_values).pooler_output)
        scores = 3 * normalize(images, dim=-1) @ normalize(texts, dim=-1).T - 2
        return hf.utils.ModelOutput(by_text=scores.T, by_image=scores)


def paired(cls: Any) -> Any:
    torch.manual_seed(0)
    parts = {"text_config": {**TEXT, "projection_dim": WIDTH}, "vision_config": {**VISION, "projection_dim": WIDTH}}
    return random_weights(cls(hf.CLIPConfig(**parts, projection_dim=WIDTH)))


def test_scores_by_another_rule_are_refused(clip: Any) -> None:
    model = paired(Product)
    assert steer.inspect(model).streams.scores == "similarity"
    with pytest.raises(MappingError, match="Product does not score pictures against texts by the cosine"):
        steer.TwoStream(model, clip[1])


def test_a_switch_and_the_field_of_the_scores_are_found(clip: Any) -> None:
    model = paired(Switched)
    streams = steer.inspect(model).streams
    assert (streams.scores, streams.scores_per_text, streams.options) == ("by_image", "by_text", {"judge": False})
    processor = SimpleNamespace(tokenizer=tokenizer(mask=False), image_processor=clip[1].image_processor)
    stream = steer.TwoStream(model, processor)
    assert (stream.scale, stream.bias) == pytest.approx((3, -2), abs=1e-4)


def test_the_map_is_plain_data_with_the_streams(clip: Any) -> None:
    data = steer.inspect(clip[0]).to_dict()["streams"]
    assert data["text"] == {"path": "text_projection", "field": None, "width": WIDTH}
    assert data["image"]["path"] == "visual_projection"
    assert steer.inspect(tiny_llama()).to_dict()["streams"] is None


def test_models_and_processors_that_do_not_serve_are_named(clip: Any) -> None:
    model, processor = clip
    with pytest.raises(MappingError, match="LlamaForCausalLM is not mapped"):
        steer.TwoStream(tiny_llama(), processor)
    for part in ("tokenizer", "image_processor"):
        lacking = SimpleNamespace(**{**vars(processor), part: None})
        with pytest.raises(SteerError, match="SimpleNamespace"):
            steer.TwoStream(model, lacking)


@pytest.mark.parametrize(("asked", "slots"), [(10, 10), (10**30, SLOTS), (SLOTS + 5, SLOTS)])
def test_slots_are_the_least_that_model_and_tokenizer_know(clip: Any, asked: int, slots: int) -> None:
    words = tokenizer()
    words.model_max_length = asked
    stream = steer.TwoStream(clip[0], SimpleNamespace(tokenizer=words, image_processor=clip[1].image_processor))
    assert stream.slots == slots
    long = " ".join(["cat"] * (slots - 2))
    assert stream.tokens(["dog", long])["input_ids"].shape == (2, slots)
    with pytest.raises(SteerError, match=f"cat cat.* {slots + 1} tokens.*at most {slots}"):
        stream.tokens(["dog", f"{long} cat"])


def test_texts_are_padded_on_the_right_as_far_as_the_longest(stream: steer.TwoStream) -> None:
    made = stream.tokens(["cat", "a big red dog"])
    assert made["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]


def test_scores_are_the_cosine_by_the_measured_rule(stream: steer.TwoStream) -> None:
    images, texts = randn(3, WIDTH), randn(5, WIDTH, seed=1)
    wanted = math.exp(float(stream.model.logit_scale)) * torch.tensor(
        [[float(i.double() @ t.double() / i.double().norm() / t.double().norm()) for t in texts] for i in images]
    )
    torch.testing.assert_close(stream.scores(images, texts), wanted, rtol=1e-6, atol=1e-5)
    each = texts.expand(3, 5, WIDTH).contiguous()
    torch.testing.assert_close(stream.scores(images, each), wanted, rtol=1e-6, atol=1e-5)
    each[1] += 1
    torch.testing.assert_close(stream.scores(images, each)[[0, 2]], wanted[[0, 2]], rtol=1e-6, atol=1e-5)
    assert stream.scores(images.bfloat16(), texts.bfloat16()).dtype == torch.float32
    assert stream.scores(images.double(), texts.double()).dtype == torch.float64


def test_bf16_models_are_measured_alike() -> None:
    model, processor = build("siglip")
    stream = steer.TwoStream(model.bfloat16(), processor)
    assert (stream.scale, stream.bias) == pytest.approx((math.exp(2), -3.0), rel=2e-2)
    assert stream.pads_matter
    assert stream.pixels(pictures(1))["pixel_values"].dtype == torch.bfloat16


def test_measuring_leaves_nothing_behind() -> None:
    for name in ("clip", "blip", "tipsv2"):
        model, processor = build(name)
        before = traces(model)
        steer.TwoStream(model, processor)
        assert traces(model) == before


@pytest.mark.parametrize("name", ["clip", "blip", "tipsv2", "siglip2"])
def test_halves_go_through_sessions_and_gradients(name: str) -> None:
    """What is changed in one half is seen by that half only, and in the model's own call by the scores."""
    model, processor = build(name)
    stream = steer.TwoStream(model, processor)
    inputs, pixels = stream.tokens(["a cat", "a red dog"]), stream.pixels(pictures(3))
    with torch.no_grad():
        texts, images = stream.text_features(inputs), stream.image_features(pixels)
    shift, width = randn(1, texts.shape[1]).requires_grad_(), model.get_submodule(FAMILIES[name].table).embedding_dim
    row = randn(1, width).requires_grad_()
    features = steer.Intervention(sites.features(), ops.Apply(lambda x: x + shift))
    word = steer.Intervention(sites.token_embeddings(), ops.Write(row, torch.tensor([1])))
    with steer.attach(model, features, strict=False):
        torch.testing.assert_close(stream.text_features(inputs), texts + shift)
        assert torch.equal(stream.image_features(pixels), images)
        scores = getattr(stream.call({**inputs, **pixels}), FAMILIES[name].scores)
    torch.testing.assert_close(scores, stream.scores(images, texts + shift), rtol=0, atol=2e-5)
    with steer.attach(model, word, strict=False) as session:
        assert torch.equal(stream.image_features(pixels), images)
        changed = stream.text_features(inputs)
        with steer.record(model, sites.token_embeddings(), sites.features(), sites.features("vision")) as acts:
            stream.call({**inputs, **pixels})
    assert session.report().lines[0].rows > 0
    assert (changed - texts).norm() > 1e-2 * texts.norm()
    torch.testing.assert_close(acts["features"], changed.detach())
    torch.testing.assert_close(acts["features", -1, "vision"], images)
    assert torch.equal(acts["token_embeddings"][:, 1], row.detach().expand(2, -1))
    got = torch.autograd.grad(stream.scores(images, changed).sum(), row)[0]
    assert got.abs().max() > 1e-5


def test_nested_sessions_act_in_order_and_end_in_any(clip: Any, stream: steer.TwoStream) -> None:
    model, _ = clip
    inputs, before = stream.tokens(["a cat"]), traces(model)
    with torch.no_grad():
        plain = stream.text_features(inputs)
        first = steer.attach(model, steer.Intervention(sites.features(), ops.Apply(lambda x: x + 1)))
        second = steer.attach(model, steer.Intervention(sites.features(), ops.Apply(lambda x: x * 2)))
        first.__enter__()
        second.__enter__()
        torch.testing.assert_close(stream.text_features(inputs), (plain + 1) * 2)
        first.__exit__(None, None, None)
        torch.testing.assert_close(stream.text_features(inputs), plain * 2)
        second.__exit__(None, None, None)
        assert torch.equal(stream.text_features(inputs), plain)
    assert traces(model) == before


def test_a_report_tells_of_words_features_and_calls(clip: Any, stream: steer.TwoStream) -> None:
    model, _ = clip
    items = [
        steer.Intervention(sites.token_embeddings(), ops.Write(randn(2, 32), torch.tensor([1, 2]))),
        steer.Intervention(sites.features(), ops.Scale(2.0)),
        steer.Intervention(sites.features("vision"), ops.Scale(1.0)),
        steer.Intervention(sites.call(), ops.Around()),
    ]
    with steer.attach(model, *items) as session, torch.no_grad():
        stream.call({**stream.tokens(["a cat", "a dog"]), **stream.pixels(pictures(3))})
    lines = session.report().lines
    assert [(line.site, line.calls) for line in lines] == [
        ("token_embeddings", 1), ("features", 1), ("features", 1), ("call", 1),
    ]  # fmt: skip
    assert lines[1].rows == 2
    assert lines[2].rows == 3
    assert lines[1].max_change == pytest.approx(1.0, rel=1e-5)
    assert lines[2].max_change == 0.0
    assert "features" in str(session.report())


def test_other_ops_find_the_width_of_a_feature(clip: Any, stream: steer.TwoStream) -> None:
    model, _ = clip
    inputs, v = stream.tokens(["a cat", "a dog"]), randn(WIDTH)
    with torch.no_grad():
        plain = stream.text_features(inputs)
        with steer.attach(model, steer.Intervention(sites.features(), ops.Add(v))):
            torch.testing.assert_close(stream.text_features(inputs), plain + v)
    with pytest.raises(SteerError, match=str(WIDTH)):
        steer.attach(model, steer.Intervention(sites.features(), ops.Add(randn(WIDTH + 1)))).__enter__()
