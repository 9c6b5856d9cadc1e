"""Rows added behind a picture's patches and dropped again, and the masks that show them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import steer
from steer import ops, sites
from steer._streams import _wider, growing, widen
from steer.errors import InterventionError, MappingError
from tests.prompts.models import GRIDS, build, pictures

from .helpers import randn
from .test_rows import TEXT, VISION, by_hand

NINF = -torch.inf


@pytest.fixture(scope="module")
def clip() -> Any:
    return build("clip")[0]


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return build("clip")[1].image_processor(pictures(3))["pixel_values"]


# A mask for three rows, what it is for five: added ones are seen, and see what the first row sees.
ADDITIVE = torch.tensor([[0.0, NINF, 0.0], [0.0, 0.0, 0.0], [NINF, 0.0, 0.0]])
MASKS = {
    "additive, a column": (torch.tensor([[0.0, NINF, NINF]]), [[0.0, NINF, NINF, 0.0, 0.0]]),
    "additive, square": (
        ADDITIVE,
        [
            [0.0, NINF, 0.0, 0.0, 0.0], [0.0] * 5, [NINF, 0.0, 0.0, 0.0, 0.0],
            [0.0, NINF, 0.0, 0.0, 0.0], [0.0, NINF, 0.0, 0.0, 0.0],
        ],
    ),
    "true and false": (torch.tensor([[True, True, False]]), [[True, True, False, True, True]]),
    "true and false, square": (
        ADDITIVE == 0,
        [
            [True, False, True, True, True], [True] * 5, [False, True, True, True, True],
            [True, False, True, True, True], [True, False, True, True, True],
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MASKS))
def test_masks_are_widened_for_every_row(name: str) -> None:
    mask, wanted = MASKS[name][0], torch.tensor(MASKS[name][1])
    four = _wider(mask.expand(2, 1, *mask.shape), 5)
    assert torch.equal(four, wanted.expand(2, 1, *wanted.shape))
    assert _wider(four, 5) is four
    if len(mask) == 3:
        assert torch.equal(_wider(mask.expand(2, 3, 3), 5), wanted.expand(2, 5, 5))


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_flat_masks_are_widened_with_ones(dtype: torch.dtype) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=dtype)
    wanted = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 1]], dtype=dtype)
    assert torch.equal(_wider(mask, 5), wanted)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_added_rows_are_what_real_patches_would_be(implementation: str) -> None:
    """Pictures of 12 patches with padding behind, given the rest of larger ones as vectors, read as those."""
    model, processor = build("siglip2")
    model.set_attn_implementation(implementation)
    small = processor.image_processor(pictures(2, sizes=((12, 16), (12, 16))))
    small = {key: torch.cat([value, value[:1]]) for key, value in small.items()}
    small["pixel_attention_mask"][2] = 0
    small["pixel_attention_mask"][2, :8] = 1  # a third one, of which only 8 are seen
    small["spatial_shapes"][2] = torch.tensor([2, 4])
    last = len(model.vision_model.encoder.layers) - 1
    rows = randn(3, 16, VISION)
    truth = []
    with torch.no_grad():
        for row, seen in zip(rows, (12, 12, 8), strict=True):
            x = torch.cat([row[:seen], row[12:]])[None]  # no padding, no mask
            for layer in model.vision_model.encoder.layers:
                x = layer(x, attention_mask=None)
            truth.append(x[0])
        place = torch.arange(12)
        changes = [
            steer.Intervention(sites.embeddings("vision"), ops.Write(rows[:, :12], place)),
            steer.Intervention(sites.embeddings("vision"), ops.Append(rows[:, 12:])),
        ]
        with steer.attach(model, changes), steer.record(model, sites.resid_out(last, "vision"), stop=True) as acts:
            model.vision_model(**small)
    made = acts["resid_out", last, "vision"]
    assert made.shape == (3, 20, VISION)
    for row, wanted, seen in zip(made, truth, (12, 12, 8), strict=True):
        torch.testing.assert_close(row[:seen], wanted[:seen], rtol=0, atol=2e-5)
        torch.testing.assert_close(row[-4:], wanted[-4:], rtol=0, atol=2e-5)


def test_dropped_rows_are_gone_and_the_rest_as_plain_hooks_leave_them(clip: Any, pixels: torch.Tensor) -> None:
    vectors = randn(3, 2, VISION).requires_grad_()
    layers = clip.vision_model.encoder.layers

    def seen() -> torch.Tensor:
        return clip.get_image_features(pixel_values=pixels).pooler_output

    with by_hand(clip.vision_model.embeddings, lambda x: torch.cat([x, vectors], 1)):
        with by_hand(layers[-1], lambda x: x[:, :-2]):
            wanted = seen()
    changes = [
        steer.Intervention(sites.embeddings("vision"), ops.Append(lambda: vectors)),
        steer.Intervention(sites.resid_out(2, "vision"), ops.Drop(2)),
    ]
    with steer.attach(clip, changes) as session, steer.record(clip, sites.resid_out([1, 2], "vision")) as acts:
        got = seen()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    grads = [torch.autograd.grad(one.square().sum(), vectors)[0] for one in (wanted, got)]
    torch.testing.assert_close(*grads)
    assert (acts["resid_out", 1, "vision"].shape[1], acts["resid_out", 2, "vision"].shape[1]) == (19, 17)
    assert [line.calls for line in session.report().lines] == [1, 1]
    assert "embeddings" in str(session.report())


@pytest.mark.parametrize("count", [0, -1, 17, 40])
def test_more_rows_than_there_are_cannot_be_dropped(clip: Any, pixels: torch.Tensor, count: int) -> None:
    drop = steer.Intervention(sites.resid_out(2, "vision"), ops.Drop(count))
    with pytest.raises(InterventionError, match="17"), steer.attach(clip, drop):
        clip.get_image_features(pixel_values=pixels)


def test_appended_vectors_that_do_not_fit_are_named(clip: Any, pixels: torch.Tensor) -> None:
    for vectors, said in ((randn(2, VISION + 1), "25"), (randn(5, 2, VISION), "batch of 3"), (randn(VISION), "24")):
        append = steer.Intervention(sites.embeddings("vision"), ops.Append(vectors))
        with pytest.raises(InterventionError, match=said), steer.attach(clip, append):
            clip.get_image_features(pixel_values=pixels)


def test_rows_are_added_where_a_picture_is_seen_whole_only(clip: Any) -> None:
    append = steer.Intervention(sites.embeddings(), ops.Append(randn(1, TEXT)))
    with pytest.raises(MappingError, match="text tower of CLIPModel"):
        steer.attach(clip, append).__enter__()


def test_pictures_of_different_grids_are_not_told_apart_by_their_batch() -> None:
    model, processor = build("siglip2")
    images = pictures(4, sizes=GRIDS)
    changes = [
        steer.Intervention(sites.embeddings("vision"), ops.Append(randn(3, VISION))),
        steer.Intervention(sites.resid_out(2, "vision"), ops.Drop(3)),
    ]
    with steer.attach(model, changes), torch.no_grad():
        together = model.get_image_features(**processor.image_processor(images)).pooler_output
        alone = [model.get_image_features(**processor.image_processor([one])).pooler_output for one in images]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=2e-5)


@pytest.mark.parametrize("named", [False, True])
def test_a_mask_is_widened_however_the_layer_is_given_it(named: bool) -> None:
    class Layer(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return attention_mask

    layer, hidden, mask = Layer(), torch.ones(1, 5, 2), torch.tensor([[0, 1, 1]])
    widen(layer)
    seen = layer(hidden, attention_mask=mask) if named else layer(hidden, mask)
    assert seen.tolist() == [[0, 1, 1, 1, 1]]


def test_a_tower_without_one_module_of_first_rows_cannot_grow(clip: Any) -> None:
    model_map = steer.inspect(clip)
    with pytest.raises(MappingError, match="vision tower of CLIPModel has no one module"):
        growing(model_map, replace(model_map.tower("vision"), embeddings=None))
