"""Tiny models of every vision-language architecture of transformers, with inputs that run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from .._inspecting import inspect
from ..errors import SteerError, unknown_name
from ._configs import MAPPINGS, TINY, class_named, missing, model_types
from ._inputs import inputs_for
from ._tiny import tiny_model

FAMILIES: dict[str, str] = {
    "llava": "a picture's tokens among the words of a decoder",
    "qwen2_5_vl": "grouped queries, positions in three dimensions, pictures as flat patches seen in windows",
    "gemma3": "layers with a sliding window, tokens of a picture that see each other",
    "mllama": "pictures by cross-attention in layers of their own",
    "florence2": "encoder and decoder",
    "blip": "attention outside transformers' registry, cross-attention in every layer",
    "kimi_k25": "latent attention, whose values are narrower than its queries, and experts",
    "qwen3_5": "linear attention, with softmax attention in some layers",
    "nemotron_h_omni": "state-space layers, attention layers and layers that are an MLP alone",
    "clip": "two streams, a softmax over their products",
    "siglip2": "two streams, a sigmoid; pictures of any shape",
}
"""One architecture of each kind, for `pytest.mark.parametrize`: its name, and what is particular about it."""


def architectures() -> list[str]:
    """The names that `tiny` takes, for every architecture that can be built here.

    They are transformers' model types ("llava"); where one has two classes, the second goes by its class ("BlipModel").
    Those whose vision tower comes from timm are left out where timm is not installed.
    """
    return sorted({name for name, cls in _names().items() if missing(cls) is None and not _second_name(name, cls)})


def tiny(architecture: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny model of an architecture, and inputs for it: `model(**inputs)`.

    It has every part and every kind of layer that the architecture has, at least three layers a tower, widths of 64,
    and 128 token ids. Nothing is downloaded.

    Args:
        architecture: transformers' model type, or a class's name: one of `architectures()`.

    Returns:
        The model with random weights of seed 0 under which a change anywhere moves the output, fp32, on the CPU, in
        eval mode, its parameters without gradients; and one prompt with a picture: token ids and mask (1, T), pixels as
        the architecture takes them, where it has an encoder for words and a decoder, the decoder's ids too.

    Raises:
        UnknownNameError: no such architecture; the message has the nearest.
        SteerError: it needs a package that is not installed.
    """
    names = _names()
    if architecture not in names:
        raise unknown_name("architecture", architecture, [*architectures(), *model_types()])
    cls = names[architecture]
    if why := missing(cls):
        raise SteerError(f"architecture {architecture!r} cannot be built: {why}")
    with _quiet():
        model = tiny_model(class_named(cls))
        inputs = inputs_for(model, inspect(model), TINY.get(cls, {}).get("inputs"))
    return model, inputs


def _names() -> dict[str, str]:
    """Class by every name it may be asked for."""
    classes = model_types()
    named = {cls: cls for cls in classes}
    for mapping in MAPPINGS:
        for model_type, names in mapping.items():
            named.setdefault(model_type, names if isinstance(names, str) else names[0])
    return named


def _second_name(name: str, cls: str) -> bool:
    """Whether the class has a better name than this one: its model type, unless another class has that."""
    best = model_types()[cls]
    return name != (best if _names()[best] == cls else cls)


@contextmanager
def _quiet() -> Iterator[None]:
    """Shrunk configs have fields and ids that transformers warns of."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
