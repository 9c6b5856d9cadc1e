"""What of a model and its tokenizer a memory depends on, and whether another has the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .._sharding import is_spread
from ..errors import FingerprintError
from ..prompts import tokenizer_of

ROPE = (
    "rope_parameters",
    "rope_theta",
    "rope_scaling",
    "partial_rotary_factor",
    "max_position_embeddings",
    "original_max_position_embeddings",
)
# Numbers looked at in each parameter: two checkpoints that agree in all of these are the same.
SAMPLE = 64


def rope_of(model: Any) -> dict[str, Any]:
    """How the text tower's config places tokens."""
    config = model.config.get_text_config(decoder=True)
    found = {name: getattr(config, name, None) for name in ROPE}
    made: dict[str, Any] = json.loads(json.dumps({n: v for n, v in found.items() if v is not None}, default=str))
    return made


def weights_of(model: nn.Module) -> str | None:
    """A digest of some numbers of every parameter; None where parameters are not here (offloaded, or spread)."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.is_meta or is_spread(parameter):
            return None
        flat = parameter.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SAMPLE)].cpu().contiguous()
        digest.update(some.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_hash(processor: Any) -> str:
    """A digest of the words and their ids."""
    words = sorted(tokenizer_of(processor).get_vocab().items())
    return hashlib.sha256(json.dumps(words, separators=(",", ":")).encode()).hexdigest()


def check_fits(record: Mapping[str, Any], model: Any, processor: Any) -> None:
    """Check that a memory's keys are what this model would have made of the same tokens.

    Raises:
        FingerprintError: the message names what differs.
    """
    from ..method import check_fingerprint
    from ..session import map_of

    how = "read the context again with this model"
    check_fingerprint("this memory", record["fingerprint"], map_of(model), how)
    name = type(model).__name__
    here, there = rope_of(model), record["rope"]
    differ = [
        f"{key} was {there.get(key)!r:.200}, here {here.get(key)!r:.200}"
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]
    if differ:
        raise FingerprintError(f"this memory's keys were placed otherwise than {name} does: {'; '.join(differ)}; {how}")
    if record["weights"] is not None and record["dtype"] == dtype_of(model):
        weights = weights_of(model)
        if weights is not None and weights != record["weights"]:
            raise FingerprintError(f"this memory was made with other weights than this {name} has; {how}")
    if processor is not None and record["tokenizer"] not in (None, tokenizer_hash(processor)):
        raise FingerprintError(
            "this memory's tokens were made by another tokenizer: the words or their ids differ; "
            "use the processor that it was made with"
        )


def dtype_of(model: Any) -> str:
    """The name of a model's dtype, without `torch.`."""
    return str(model.dtype).removeprefix("torch.")
