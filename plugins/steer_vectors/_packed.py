"""Words and pictures as tensors, so that they are saved as every learned thing is: safetensors, nothing unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

import steer

WORDS = "examples"
KEPT_MODES = ("L", "LA", "RGB", "RGBA")
"""Of PIL: those whose bytes are the picture. Others (palettes, bits) become RGB or RGBA, as processors make them."""


def as_bytes(data: Any) -> torch.Tensor:
    """JSON data as its UTF-8 text, uint8 (N,)."""
    return torch.tensor(list(json.dumps(data, ensure_ascii=False).encode()), dtype=torch.uint8)


def from_bytes(text: torch.Tensor) -> Any:
    """The other way.

    Raises:
        FileFormatError: the tensor holds no JSON.
    """
    try:
        return json.loads(bytes(text.tolist()))
    except (ValueError, TypeError, RecursionError) as error:
        raise steer.errors.FileFormatError(f"a tensor that should hold JSON does not: {error}") from error


def pack(examples: Sequence[steer.Example]) -> dict[str, torch.Tensor]:
    """Examples as tensors: "examples", their words as `as_bytes`, and "picture.I.J", the pictures of example I.

    Raises:
        SteerError: a picture that is not a PIL image, an array or a tensor.
    """
    tensors: dict[str, torch.Tensor] = {}
    words = []
    for i, one in enumerate(examples):
        kinds = []
        for j, picture in enumerate(one.images):
            kind, tensors[f"picture.{i}.{j}"] = _pixels(picture)
            kinds.append(kind)
        words.append([one.question, one.answer, kinds])
    return {WORDS: as_bytes(words), **tensors}


def unpack(tensors: Mapping[str, torch.Tensor]) -> tuple[steer.Example, ...]:
    """The examples of `pack`, with equal words and pictures of the kind that they were.

    Raises:
        FileFormatError: the tensors are not those of `pack`.
    """
    try:
        return tuple(
            steer.Example(
                str(question),
                str(answer),
                tuple(_picture(kind, tensors[f"picture.{i}.{j}"]) for j, kind in enumerate(kinds)),
            )
            for i, (question, answer, kinds) in enumerate(from_bytes(tensors[WORDS]))
        )
    except (ValueError, TypeError, KeyError) as error:
        raise steer.errors.FileFormatError(f"the saved demonstrations cannot be read: {error!r}") from error


def _pixels(picture: Any) -> tuple[str, torch.Tensor]:
    if isinstance(picture, torch.Tensor):
        return "tensor", picture.detach().to("cpu", copy=True)
    if isinstance(picture, np.ndarray):
        return "array", torch.from_numpy(picture.copy())
    if not isinstance(picture, Image.Image):
        raise steer.SteerError(
            f"a demonstration's picture is kept with the method, and a {type(picture).__name__} cannot be; "
            "give PIL images, arrays or tensors (of a path: PIL.Image.open(path))"
        )
    if picture.mode not in KEPT_MODES:
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return "image", torch.from_numpy(np.array(picture))


def _picture(kind: str, pixels: torch.Tensor) -> Any:
    if kind == "tensor":
        return pixels
    return Image.fromarray(pixels.numpy()) if kind == "image" else pixels.numpy()
