"""Digests of examples by what is in them, words and pictures, and of models by their weights."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import SteerError

if TYPE_CHECKING:
    from .examples import Example
    from .prompts import Prompt

_SAMPLE = 256


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


def weights_digest(model: torch.nn.Module) -> str:
    """Of a model's weights and buffers, in one quick pass: each one's sum, and some numbers of it where they stand.

    Meant to tell checkpoints apart, not to withstand someone who looks for two with the same digest.
    """
    digest = hashlib.sha256()
    for name, value in sorted({**dict(model.named_buffers()), **dict(model.named_parameters())}.items()):
        whole = _whole(value)
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)} ".encode())
        if whole.device.type == "meta":
            continue
        flat = whole.detach().reshape(-1)
        # A sum alone is the same after a change of places; 8-bit floats have none.
        some = flat[:: max(1, flat.numel() // _SAMPLE)].double().cpu()
        total = some.sum() if value.is_floating_point() and value.itemsize == 1 else flat.sum(dtype=torch.float64)
        digest.update(f"{float(total):.17g} ".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def _whole(value: torch.Tensor) -> torch.Tensor:
    """A weight; of a model that is spread over processes, all of which must come here, what they hold together."""
    if hasattr(value, "full_tensor"):  # a DTensor
        return value.full_tensor()
    if hasattr(value, "ds_id"):  # of DeepSpeed's ZeRO-3, where what is left behind is empty
        with importlib.import_module("deepspeed").zero.GatheredParameters([value]):
            return value.detach().clone()
    return value
