"""Digests of examples by what is in them: words and pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import SteerError

if TYPE_CHECKING:
    from .examples import Example
    from .prompts import Prompt


def picture_bytes(picture: Any) -> bytes:
    """A picture's size and content.

    Raises:
        SteerError: of a type that cannot be read as an array.
    """
    if isinstance(picture, str):
        return b"named " + picture.encode()
    pixels = picture.detach().float().cpu().numpy() if isinstance(picture, torch.Tensor) else np.asarray(picture)
    if pixels.dtype == object:
        raise SteerError(
            f"a picture of type {type(picture).__name__} cannot be compared with others; "
            "give PIL images, arrays, tensors, or paths as strings"
        )
    return f"{pixels.shape} {pixels.dtype} ".encode() + pixels.tobytes()


def question_digest(example: Example) -> bytes:
    """Of question and pictures, 16 bytes."""
    digest = hashlib.blake2b(example.question.encode(), digest_size=16)
    for picture in example.images:
        digest.update(picture_bytes(picture))
    return digest.digest()


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """Of every word, picture and place of a list of prompts."""
    digest, seen = hashlib.sha256(), dict[int, bytes]()
    for prompt in prompts:
        for one in (*prompt.shots, prompt.query):
            # The same example stands in many prompts; its pictures are read once.
            if id(one) not in seen:
                seen[id(one)] = question_digest(one) + repr(one.answer).encode()
            digest.update(seen[id(one)])
        digest.update(b"." if prompt.answered else b"?")
    return digest.hexdigest()
