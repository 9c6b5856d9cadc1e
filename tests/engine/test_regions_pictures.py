"""Boxes in a picture as positions, against models whose image tokens see their own pixels and no others.

The truth is the model: one whose vision tower has no layers, so that a pixel reaches only the tokens that its patch
becomes, through whatever the processor and the connector do. One pixel is changed and the image features are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import nn

from steer import regions
from steer.errors import InterventionError, MappingError, UnknownNameError

from .families import CLIP_VISION, QWEN_VISION, ROPE, text
from .regions_processors import cropping, joining, merging, noise, tiling, word_tokenizer

IDS = {"image_token_id": 3, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}


def llava(side: int, joined: bool = False) -> nn.Module:
    vision = {**CLIP_VISION, "num_hidden_layers": 1, "image_size": side, "patch_size": 4, "projection_dim": 24}
    more = {"image_grid_pinpoints": [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]} if joined else {}
    config, model = (hf.LlavaConfig, hf.LlavaForConditionalGeneration)
    if joined:
        config, model = (hf.LlavaNextConfig, hf.LlavaNextForConditionalGeneration)
    made = model(
        config(
            text_config={"model_type": "llama", **text(1)},
            vision_config={"model_type": "clip_vision_model", **vision},
            image_token_index=3,
            vision_feature_layer=-1,
            **more,
        )
    )
    # transformers wants one layer; this one adds nothing to what passes it
    for name, parameter in made.named_parameters():
        if "encoder.layers" in name and ("out_proj" in name or "fc2" in name):
            nn.init.zeros_(parameter)
    return made


def qwen() -> nn.Module:
    config = hf.Qwen2_5_VLConfig(
        text_config=text(1, rope_parameters={**ROPE, "mrope_section": [1, 1, 2]}),
        vision_config={**QWEN_VISION, "depth": 0, "window_size": 16, "fullatt_block_indexes": []},
        image_token_id=3,
        video_token_id=97,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def idefics(side: int) -> nn.Module:
    vision = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 0, "num_attention_heads": 3}
    config = hf.Idefics3Config(
        text_config={"model_type": "llama", **text(1, pad_token_id=0)},
        vision_config={**vision, "image_size": side, "patch_size": side // 4},
        scale_factor=2,
        image_token_id=3,
        pad_token_id=0,
    )
    return hf.Idefics3ForConditionalGeneration(config)


@dataclass(frozen=True)
class Case:
    """A processor, a model that goes with it, and a picture's (width, height)."""

    processor: Callable[[], Any]
    model: Callable[[], nn.Module]
    size: tuple[int, int]
    whole: int | None = None
    """How many tokens of the first run are the whole picture's, where its parts come after them in the same run."""


CASES = {
    "crop, as it is": Case(lambda: cropping(16), lambda: llava(16), (16, 16)),
    "crop, wide and smaller": Case(lambda: cropping(16), lambda: llava(16), (75, 32)),
    "crop, high and larger": Case(lambda: cropping(32), lambda: llava(32), (20, 31)),
    "stretch": Case(lambda: cropping(32, crop=False), lambda: llava(32), (70, 40)),
    "crop, ramps stacked": Case(lambda: cropping(32), lambda: llava(32), (900, 600)),
    "merge, as it is": Case(merging, qwen, (32, 48)),
    "merge, odd": Case(merging, qwen, (53, 29)),
    "merge, shrunk": Case(lambda: merging(pixels=(64, 1024)), qwen, (90, 61)),
    "merge, grown": Case(lambda: merging(pixels=(1024, 4096)), qwen, (13, 21)),
    "tiles, as they are": Case(tiling, lambda: idefics(32), (64, 32)),
    "tiles, grown": Case(tiling, lambda: idefics(32), (41, 30)),
    "tiles, shrunk": Case(lambda: tiling(32, 96), lambda: idefics(32), (160, 230)),
    "tiles, one": Case(lambda: tiling(32, 32), lambda: idefics(32), (40, 40)),
    "joined, as it is": Case(joining, lambda: llava(16, joined=True), (32, 32), whole=16),
    "joined, padded above": Case(joining, lambda: llava(16, joined=True), (61, 40), whole=16),
    "joined, padded beside": Case(joining, lambda: llava(16, joined=True), (33, 90), whole=16),
    "joined, wide": Case(joining, lambda: llava(16, joined=True), (150, 50), whole=16),
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def features(model: nn.Module, inputs: Any) -> torch.Tensor:
    """What each image token is given, (n, D), in the order of the prompt."""
    given = {k: v for k, v in inputs.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    out = model.get_image_features(**given)
    out = getattr(out, "pooler_output", out)
    return torch.cat([one.reshape(-1, one.shape[-1]) for one in out])


def pictured(processor: Any, picture: Image.Image) -> Any:
    return processor(text=["user : <image> what colour is it ?"], images=[picture], return_tensors="pt")


def tiles_of(ids: torch.Tensor, whole: int | None) -> list[list[int]]:
    """The numbers of the image tokens in each run of them, and the first ones by themselves."""
    slots = (ids == 3).nonzero().flatten().tolist()
    starts = [i for i, slot in enumerate(slots) if i == 0 or slots[i - 1] != slot - 1]
    starts = [0, whole] if whole else starts
    return [list(range(a, b)) for a, b in zip(starts, [*starts[1:], len(slots)], strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_a_pixel_reaches_the_token_in_whose_box_it_is(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    processor, model = case.processor(), case.model().eval().requires_grad_(False)
    width, height = case.size
    black = Image.new("RGB", case.size)
    inputs = pictured(processor, black)
    slots, boxes = regions.footprints(processor, inputs, black)
    assert slots.tolist() == (inputs["input_ids"][0] == 3).nonzero().flatten().tolist()
    assert (boxes.dtype, boxes.shape) == (torch.float32, (len(slots), 4))
    before = features(model, inputs)
    assert len(before) == len(slots)
    # A spot of about one pixel of the resized picture, so that it does not vanish when a large one is shrunk.
    spot = max(1, max(width, height) // 60)
    margin, checked, seen = 0.5 * spot + 0.4, 0, set()
    rng = np.random.default_rng(0)
    for _ in range(300):
        if checked >= 40:
            break
        x, y = int(rng.integers(0, width - spot + 1)), int(rng.integers(0, height - spot + 1))
        changed = np.zeros((height, width, 3), dtype=np.uint8)
        changed[y : y + spot, x : x + spot] = 255
        moved = (features(model, pictured(processor, Image.fromarray(changed))) - before).norm(dim=-1)
        where = torch.tensor([x + spot / 2, y + spot / 2])
        inside = holds(boxes, where, 0)
        for tile in tiles_of(inputs["input_ids"][0], case.whole):
            expected = [token for token in tile if inside[token]]
            if not expected:
                # the resampling filter reaches a few pixels over an edge
                assert moved[tile].max() < 1e-5 or holds(boxes[tile], where, 4 * spot).any()
                continue
            if not holds(boxes[expected], where, -margin).all():
                continue  # it lies on an edge
            assert expected == [tile[int(moved[tile].argmax())]]
            checked += 1
            seen.add(expected[0])
    assert checked >= 8
    assert len(seen) >= 4


def holds(boxes: torch.Tensor, where: torch.Tensor, more: float) -> torch.Tensor:
    """Whether each of some boxes, made larger by some pixels on every side, holds a point."""
    return ((boxes[:, :2] - more < where) & (where < boxes[:, 2:] + more)).all(-1)


@pytest.mark.parametrize("name", ["crop, as it is", "merge, as it is"])
def test_a_box_names_exactly_the_tokens_that_change_with_it(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    processor, model = case.processor(), case.model().eval().requires_grad_(False)
    picture = noise(*case.size)
    inputs = pictured(processor, picture)
    before = features(model, inputs)
    for box in [(0, 0, 8, 8), (5, 3, 11, 15), (8, 8, 16, 16), (6, 6, 7, 7), (0, 9, 16, 10)]:
        changed = np.array(picture)
        left, top, right, bottom = box
        changed[top:bottom, left:right] ^= 255
        after = features(model, pictured(processor, Image.fromarray(changed)))
        moved = (after - before).norm(dim=-1) > 1e-6
        region = regions.image_region(processor, inputs, picture, box, threshold=0.01)
        slots = (inputs["input_ids"][0] == 3).nonzero().flatten()
        assert region.rows[0].nonzero().flatten().tolist() == slots[moved].tolist()


def test_closed_form_of_a_centre_crop() -> None:
    processor = cropping(16, 4)
    picture = noise(64, 32)
    _, boxes = regions.footprints(processor, pictured(processor, picture), picture)
    # the shorter side, 32, becomes 16; of 32 columns the middle 16 stay, which were the pixels 16 to 48
    cells = [[16 + 8 * j, 8 * i, 24 + 8 * j, 8 * i + 8] for i in range(4) for j in range(4)]
    torch.testing.assert_close(boxes, torch.tensor(cells, dtype=torch.float32), atol=0.3, rtol=0)


def test_a_large_picture_is_told_to_two_pixels_and_up_to_its_borders() -> None:
    processor = cropping(64, 8, crop=False)
    picture = noise(1020, 800)
    _, boxes = regions.footprints(processor, pictured(processor, picture), picture)
    x, y = np.linspace(0, 1020, 9), np.linspace(0, 800, 9)
    cells = [[x[j], y[i], x[j + 1], y[i + 1]] for i in range(8) for j in range(8)]
    torch.testing.assert_close(boxes, torch.tensor(cells, dtype=torch.float32), atol=2, rtol=0)
    assert (boxes[0, :2].tolist(), boxes[-1, 2:].tolist()) == ([0, 0], [1020, 800])


def test_closed_form_of_tiles_and_the_whole_picture_after_them() -> None:
    processor = tiling(32, 64)
    picture = noise(128, 64)
    _, boxes = regions.footprints(processor, pictured(processor, picture), picture)
    square = [(i, j) for i in (0, 1) for j in (0, 1)]
    cells = [[x + 32 * j, 32 * i, x + 32 * j + 32, 32 * i + 32] for x in (0, 64) for i, j in square]
    cells += [[64 * j, 32 * i, 64 * j + 64, 32 * i + 32] for i, j in square]
    torch.testing.assert_close(boxes, torch.tensor(cells, dtype=torch.float32), atol=0.6, rtol=0)


def test_several_pictures_in_rows_of_a_padded_batch() -> None:
    processor = merging()
    first, second, third = noise(32, 32), noise(64, 16, 1), noise(16, 48, 2)
    texts = ["user : <image> and <image> what is it ?", "a cat <image>"]
    inputs = processor(text=texts, images=[first, second, third], return_tensors="pt", padding=True)
    assert (inputs["attention_mask"][1] == 0).any()
    for row, image, given in [(0, 0, [first, second]), (0, 1, [first, second]), (1, 0, third), (-1, -1, [third])]:
        slots, boxes = regions.footprints(processor, inputs, given, image=image, row=row)
        picture = given[image] if isinstance(given, list) else given
        alone = pictured(processor, picture)
        torch.testing.assert_close(boxes, regions.footprints(processor, alone, picture)[1])
        own = (inputs["input_ids"][row] == 3).nonzero().flatten().tolist()
        assert slots.tolist() == (own[len(own) - len(slots) :] if image else own[: len(slots)])
    region = regions.image_region(processor, inputs, [first, second], (0, 0, 8, 8), image=1)
    assert region.rows.nonzero().tolist() == [
        [0, int(regions.footprints(processor, inputs, [first, second], image=1)[0][0])]
    ]


def test_options_with_which_the_processor_was_called() -> None:
    processor = tiling(32, 64)
    picture = noise(64, 64)
    inputs = processor(text=["<image>"], images=[picture], return_tensors="pt", do_image_splitting=False)
    with pytest.raises(InterventionError, match=r"4 image tokens.*64 x 64: 20.*options"):
        regions.footprints(processor, inputs, picture)
    slots, boxes = regions.footprints(processor, inputs, picture, do_image_splitting=False)
    assert len(slots) == 4
    assert boxes[0].tolist() == pytest.approx([0, 0, 32, 32], abs=1)


@pytest.mark.parametrize("given", ["size", "array", "tensor", "channels first"])
def test_a_picture_may_be_given_in_other_ways(given: str) -> None:
    processor = merging()
    picture = noise(48, 32)
    array = np.array(picture)
    other = {
        "size": (48, 32),
        "array": array,
        "tensor": torch.from_numpy(array),
        "channels first": array.transpose(2, 0, 1),
    }[given]
    inputs = pictured(processor, picture)
    for a, b in zip(
        regions.footprints(processor, inputs, picture), regions.footprints(processor, inputs, other), strict=True
    ):
        assert torch.equal(a, b)


def test_threshold() -> None:
    processor = cropping(16, 4)
    picture = noise(16, 16)
    inputs = pictured(processor, picture)
    first = int((inputs["input_ids"][0] == 3).nonzero()[0])

    def tokens(box: tuple[float, ...], **more: float) -> list[int]:
        return [
            slot - first
            for slot in regions.image_region(processor, inputs, picture, box, **more)
            .rows[0]
            .nonzero()
            .flatten()
            .tolist()
        ]

    assert tokens((0, 0, 6, 4)) == [0, 1]
    assert tokens((0, 0, 6, 4), threshold=0.6) == [0]
    assert tokens((0, 0, 6, 4), threshold=1) == [0]
    # a box smaller than a token lies in one, however small its share of it
    assert tokens((1, 1, 1.5, 1.5)) == [0]
    assert tokens((-5, -5, 4, 99)) == [0, 4, 8, 12]


def test_without_a_box_all_tokens_of_a_picture() -> None:
    processor = merging()
    pictures = [noise(32, 32), noise(64, 16, 1)]
    inputs = processor(text=["<image> and <image>"], images=pictures, return_tensors="pt")
    region = regions.image_region(processor, inputs, pictures, image=1)
    slots, _ = regions.footprints(processor, inputs, pictures, image=1)
    assert region.rows[0].nonzero().flatten().tolist() == slots.tolist()
    assert len(slots) == 16


def test_errors() -> None:
    processor = cropping(16, 4)
    picture = noise(48, 16)
    inputs = pictured(processor, picture)
    with pytest.raises(InterventionError, match=r"no image token.*\[16, 0, 32, 16\].*48 x 16"):
        regions.image_region(processor, inputs, picture, (0, 0, 10, 10))
    for box in ((5, 5, 5, 9), (9, 5, 5, 9), (50, 0, 60, 9)):
        with pytest.raises(InterventionError, match=r"48 x 16"):
            regions.image_region(processor, inputs, picture, box)
    with pytest.raises(InterventionError, match="threshold"):
        regions.image_region(processor, inputs, picture, (0, 0, 48, 16), threshold=0)
    with pytest.raises(UnknownNameError, match="image '1'"):
        regions.footprints(processor, inputs, picture, image=1)
    with pytest.raises(InterventionError, match=r"16 image tokens.*48 x 16: 16, 48 x 16: 16"):
        regions.footprints(processor, inputs, [picture, picture])
    with pytest.raises(InterventionError, match="width, height"):
        regions.footprints(processor, inputs, ["cat.png"])
    with pytest.raises(MappingError, match="takes no pictures"):
        regions.footprints(word_tokenizer(), inputs, picture)


def test_numbers_that_no_grid_explains_are_refused() -> None:
    processor = cropping(16, 4)
    processor.num_additional_image_tokens = 2
    picture = noise(16, 16)
    with pytest.raises(MappingError, match=r"1 tile.*16 x 16 pixels and 17 image tokens.*positions.mask"):
        regions.footprints(processor, pictured(processor, picture), picture)
