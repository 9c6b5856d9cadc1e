"""Sessions on two-stream models under torch.compile and on offloaded ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import steer
from steer import ops, sites
from tests.prompts.models import build, pictures

from .helpers import randn


@pytest.fixture(scope="module")
def clip() -> Any:
    return build("clip")


@pytest.fixture(scope="module")
def stream(clip: Any) -> steer.TwoStream:
    return steer.TwoStream(*clip)


def test_a_session_on_the_text_half_is_one_graph_under_torch_compile(clip: Any, stream: steer.TwoStream) -> None:
    """fullgraph=True raises at any graph break."""
    model, _ = clip
    inputs = stream.tokens(["a cat", "a red dog"])
    slots, vectors = torch.tensor([[1, -1], [2, 1]]), randn(2, 32)
    items = [
        steer.Intervention(sites.token_embeddings(), ops.Write(vectors, slots)),
        steer.Intervention(sites.resid_in(1), ops.Write(lambda: vectors * 2, torch.tensor([1, 2]))),
        steer.Intervention(sites.features(), ops.Apply(lambda x: x * 2)),
    ]

    def half(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return model.text_projection(model.text_model(input_ids=ids, attention_mask=mask).pooler_output)

    torch._dynamo.reset()
    with torch.no_grad(), steer.attach(model, items) as session:
        plain = half(inputs["input_ids"], inputs["attention_mask"])
        compiled = torch.compile(half, backend="eager", fullgraph=True)
        assert torch.equal(compiled(inputs["input_ids"], inputs["attention_mask"]), plain)
    assert all(line.traced for line in session.report().lines)


def test_a_session_on_the_image_half_is_one_graph_under_torch_compile(clip: Any, stream: steer.TwoStream) -> None:
    model, _ = clip
    pixels, vectors = stream.pixels(pictures(2))["pixel_values"], randn(2, 24)
    items = [
        steer.Intervention(sites.embeddings("vision"), ops.Append(vectors)),
        steer.Intervention(sites.resid_in(1, "vision"), ops.Write(vectors, torch.arange(-2, 0))),
        steer.Intervention(sites.resid_out(2, "vision"), ops.Drop(2)),
    ]

    def half(pixels: torch.Tensor) -> torch.Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    torch._dynamo.reset()
    with torch.no_grad(), steer.attach(model, items):
        plain = half(pixels)
        assert torch.equal(torch.compile(half, backend="eager", fullgraph=True)(pixels), plain)


@pytest.mark.parametrize(
    ("name", "offloaded"),
    [("clip", ["text_model.encoder.layers.1", "vision_model.encoder.layers.1"]), ("blip", ["vision_model"])],
    ids=["clip", "blip"],
)
def test_layers_offloaded_to_disk_are_steered_alike(name: str, offloaded: list[str], tmp_path: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, processor = build(name)
    inputs, pixels = processor.tokenizer(["a cat"], return_tensors="pt"), processor.image_processor(pictures(1))
    items = [
        steer.Intervention(sites.token_embeddings(), ops.Write(randn(1, 32), torch.tensor([1]))),
        steer.Intervention(sites.resid_in(1), ops.Write(randn(1, 32, seed=1), torch.tensor([1]))),
        steer.Intervention(sites.embeddings("vision"), ops.Append(randn(2, 24))),
        steer.Intervention(sites.resid_out(2, "vision"), ops.Drop(2)),
    ]
    stream = steer.TwoStream(model, processor)
    with steer.attach(model, items), torch.no_grad():
        truth = stream.scores(stream.image_features(pixels), stream.text_features(dict(inputs)))
    where: dict[str, str] = {"": "cpu", **dict.fromkeys(offloaded, "disk")}
    model = accelerate.dispatch_model(model, where, main_device="cpu", offload_dir=str(tmp_path))
    stream = steer.TwoStream(model, processor)
    with steer.attach(model, items), torch.no_grad():
        got = stream.scores(stream.image_features(pixels), stream.text_features(dict(inputs)))
    torch.testing.assert_close(got, truth, rtol=1e-5, atol=1e-5)
