"""Sizes of pictures, and boxes in them."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InterventionError


def several(images: Any) -> list[Any]:
    """Pictures as a list, whether one was given or many; a pair of numbers is one picture's size."""
    one = hasattr(images, "shape") or hasattr(images, "size") or all(isinstance(n, int) for n in images)
    return [images] if one else list(images)


def size_of(picture: Any) -> tuple[int, int]:
    """Width and height."""
    shape = getattr(picture, "shape", None)
    if shape is not None and len(shape) == 3:
        height, width = shape[1:] if shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4) else shape[:2]
        return int(width), int(height)
    size = picture if isinstance(picture, tuple) else getattr(picture, "size", None)
    if not isinstance(size, tuple) or len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise InterventionError(
            f"a picture is a PIL image, an array or tensor with three axes, or its (width, height); got {picture!r:.80}"
        )
    return size


def shared(boxes: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """What each of some boxes (n, 4) shares with one (4,), as a share of the smaller of the two, (n,)."""
    boxes = _snapped(boxes, box)
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    common = (high - low).clamp(min=0).prod(-1)
    own, other = (boxes[:, 2:] - boxes[:, :2]).prod(-1), (box[2:] - box[:2]).prod()
    return torch.where(own > 0, common / torch.minimum(own, other).clamp(min=1e-9), 0.0)


def _snapped(boxes: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Boxes whose edges lie on those of one where they are less than half a pixel off: they are no more exact."""
    edges, to = boxes.reshape(-1, 2, 2), box.reshape(2, 2)
    reach = ((edges[:, 1] - edges[:, 0]) / 4).clamp(max=0.5)[:, None]
    for one in to:
        edges = torch.where((edges - one).abs() < reach, one.expand_as(edges), edges)
    return edges.reshape(-1, 4)
