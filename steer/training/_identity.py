"""What must agree for a checkpoint to be of this very fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from .._config import encode_config
from .._content import prompts_digest, weights_digest
from ..demonstrations import Demonstrations
from ..examples import Example
from ..method import Method
from ..model_map import ModelMap
from ..prompts import Prompt
from .options import Options

# Options that change what a fit costs and not what comes out of it.
_COST_ONLY = ("micro_batch_size", "gradient_checkpointing", "checkpoint_every")


def identity_of(
    method: Method,
    model: Any,
    model_map: ModelMap,
    queries: Sequence[Prompt],
    held: Sequence[Example],
    told: Demonstrations,
    seed: int,
    options: Options,
) -> dict[str, Any]:
    """Plain data that two fits share only where they would learn the same."""
    rule = {one.name: getattr(told, one.name) for one in dataclasses.fields(told) if one.name != "pool"}
    pool = {"pool": prompts_digest([Prompt(one) for one in told.pool]), **rule}
    asked = [one.query for one in queries]
    return {**identity(method, model, model_map, asked, held, seed, options), "demonstrations": pool}


def identity(
    method: Method,
    model: Any,
    model_map: ModelMap,
    examples: Sequence[Example],
    held: Sequence[Example],
    seed: int,
    options: Options,
) -> dict[str, Any]:
    """Plain data that two fits share only where they would learn the same from examples alone.

    Args:
        method: with its configuration.
        model: with its weights.
        model_map: its map.
        examples: fitted on.
        held: chosen by.
        seed: of the fit.
        options: those that change only the cost are left out.
    """
    return {
        "method": method.name,
        "configuration": encode_config(method),
        "model": model_map.fingerprint(),
        "dtype": str(model.dtype),
        "weights": weights_digest(model),
        "examples": prompts_digest([Prompt(one) for one in examples]),
        "dev": prompts_digest([Prompt(one) for one in held]),
        "seed": seed,
        "options": {k: v for k, v in dataclasses.asdict(options).items() if k not in _COST_ONLY},
    }
