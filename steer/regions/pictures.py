"""Where image tokens look, and those that look at a box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .. import positions
from ..errors import InterventionError, MappingError, unknown_name
from ..positions import Positions
from .boxes import several, shared, size_of
from .rasters import count, look
from .spans import image_token_id, real, rows_of


def footprints(
    processor: Any, inputs: Mapping[str, Any], images: Any, *, image: int = 0, row: int = 0, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which part of a picture each of its image tokens looks at.

    Args:
        processor: the model's processor. It is called some ten times on pictures of the same size.
        inputs: what it made: `input_ids` (B, S), and `attention_mask` where rows are padded.
        images: the picture of this row, or all of them in the order of the prompt: PIL images, arrays or tensors
            (H, W, C) or (C, H, W), or their sizes as `(width, height)`. Their content is not looked at.
        image: which one, from 0.
        row: which row of the batch.
        **options: whatever else the processor was called with that changes pictures, as `do_image_splitting=False`.

    Returns:
        slots: int64 (n,), where the picture's tokens stand in the row, padding counted.
        boxes: fp32 (n, 4), left, top, right and bottom in pixels of the original picture, exact to about a pixel (to
            1/1000 of its side if it is larger than that). A token of a thumbnail of the whole picture is one as any
            other. Zeros where a token sees nothing but padding, or only ends a line.

    Raises:
        MappingError: the processor takes no pictures, or the number of tokens cannot be explained; the message says
            what was seen.
        InterventionError: the pictures are not those of this row.
        UnknownNameError: there is no such picture or row.
    """
    ids, (index,) = rows_of(inputs, row)
    if getattr(processor, "image_processor", None) is None:
        raise MappingError(f"{type(processor).__name__} takes no pictures; give the model's processor")
    sizes = [size_of(one) for one in several(images)]
    if not -len(sizes) <= image < len(sizes):
        raise unknown_name("image", image, range(len(sizes)))
    token = image_token_id(processor)
    if token is None:
        raise MappingError(f"{type(processor).__name__} does not say which token stands for a picture (image_token_id)")
    seen = look(processor, sizes[image], token, options)
    counts = {size: count(processor, size, token, options) for size in set(sizes)} | {sizes[image]: len(seen.boxes)}
    slots = torch.nonzero((ids[index].cpu() == token) & real(inputs, index).bool()).flatten()
    if len(slots) != sum(counts[size] for size in sizes):
        made = ", ".join(f"{width} x {height}: {counts[width, height]}" for width, height in sizes)
        raise InterventionError(
            f"row {index} has {len(slots)} image tokens, and the pictures given would make others ({made}); "
            "give all pictures of the row, in order, and the options that the processor was called with"
        )
    before = sum(counts[size] for size in sizes[: image % len(sizes)])
    return slots[before : before + len(seen.boxes)], seen.boxes


def image_region(
    processor: Any,
    inputs: Mapping[str, Any],
    images: Any,
    box: tuple[float, float, float, float] | None = None,
    *,
    image: int = 0,
    row: int = 0,
    threshold: float = 0.1,
    **options: Any,
) -> Positions:
    """The image tokens that look at a box in a picture, or at any of it.

    Args:
        processor: as in `footprints`.
        inputs: as in `footprints`.
        images: as in `footprints`.
        box: left, top, right and bottom in pixels of the original picture; None for all of the picture's tokens.
        image: as in `footprints`.
        row: as in `footprints`.
        threshold: a token belongs to the region if what it shares with the box is at least this share of the smaller
            of the two: of its own footprint, or of the box where that is smaller. 1 leaves whole tokens inside the box.
        **options: as in `footprints`.

    Returns:
        `positions.mask` of a bool tensor (B, S) on the device of `input_ids`, true in this row alone.

    Raises:
        InterventionError: the box is empty, outside the picture, or seen by no token; the message says what is seen.
        MappingError, UnknownNameError: as `footprints`.
    """
    if not 0 < threshold <= 1:
        raise InterventionError(f"threshold must be above 0 and at most 1, got {threshold!r}")
    slots, boxes = footprints(processor, inputs, images, image=image, row=row, **options)
    width, height = size_of(several(images)[image])
    if box is None:
        return _mask(inputs, row, slots)
    left, top, right, bottom = box
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    if not (left < right and top < bottom and inside[0] < inside[2] and inside[1] < inside[3]):
        raise InterventionError(
            f"the box {tuple(box)} holds no part of the picture, which is {width} x {height} pixels; "
            "a box is (left, top, right, bottom)"
        )
    shares = shared(boxes, torch.tensor(inside, dtype=boxes.dtype))
    chosen = slots[shares >= threshold - 1e-6]
    if not len(chosen):
        seen = boxes[boxes[:, 2] > boxes[:, 0]]
        edges = [round(float(v)) for v in (*seen[:, :2].amin(0), *seen[:, 2:].amax(0))] if len(seen) else []
        raise InterventionError(
            f"no image token has a share of {threshold} with the box {tuple(box)} "
            f"(the largest is {float(shares.max()):.2f}); "
            f"the tokens see {edges or 'nothing'} of a picture of {width} x {height} pixels"
        )
    return _mask(inputs, row, chosen)


def _mask(inputs: Mapping[str, Any], row: int, slots: torch.Tensor) -> Positions:
    """These slots of one row."""
    ids = inputs["input_ids"]
    rows = torch.zeros(ids.shape, dtype=torch.bool)
    rows[row, slots] = True
    return positions.mask(rows.to(ids.device))
