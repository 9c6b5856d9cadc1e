"""Whether a folded model gives what a session gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .._bench import TOLERANCE, distance, tensors
from .._inputs import random_inputs
from ..errors import InterventionError, NeverFiredError
from ..intervention import Intervention
from ..model_map import ModelMap
from ..ops import Add
from ..session import attach
from .clone import Biases

# A shift is multiplied until it moves the outputs by this much of the largest, in so many steps of at most so much: a
# wrong fold of a small shift would otherwise hide below the rounding.
VISIBLE, STEPS, STEP = 0.3, 4, 1e3
FINEST = 1e-5


def made_up_inputs(model: Any) -> dict[str, torch.Tensor]:
    """Two rows of token ids, (2, 12), none of which the config gives a meaning; pixels for a vision model.

    Raises:
        InterventionError: the model does not run on them.
    """
    try:
        inputs = _made_up(model)
        _run(model, inputs)
    # What a forward wants, a picture say, is said by whatever error it has for that.
    except Exception as error:
        raise InterventionError(
            f"{type(model).__name__} does not run on made-up {model.main_input_name} alone; the fold cannot be tried "
            f"({type(error).__name__}: {error}); give inputs= as model(**inputs) takes them"
        ) from error
    return inputs


def _made_up(model: Any) -> dict[str, torch.Tensor]:
    if model.main_input_name == "pixel_values":
        return random_inputs(model)
    embeddings = model.get_input_embeddings()
    count = getattr(embeddings, "num_embeddings", None) or embeddings.weight.shape[0]
    special = special_ids(model.config.to_dict())
    plain = torch.tensor([i for i in range(count) if i not in special] or [0])
    generator = torch.Generator().manual_seed(0)
    ids = plain[torch.randint(len(plain), (2, 12), generator=generator)].to(model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(0)
    return inputs


def special_ids(config: Mapping[str, Any]) -> set[int]:
    """Numbers in fields that name a token, at any depth."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= special_ids({str(key): inner for key, inner in value.items()})
        elif "token" in name:
            found |= {i for i in (value if isinstance(value, list | tuple) else [value]) if isinstance(i, int)}
    return found


def measure(
    model: Any,
    folded: Any,
    biases: Biases,
    interventions: Sequence[Intervention],
    inputs: Mapping[str, Any],
    model_map: ModelMap,
) -> tuple[float, float]:
    """How far the folded model's outputs are from the session's, and how far the session's from the plain model's.

    Both relative to the largest output. Leaves the biases at once the shift.

    Raises:
        InterventionError: they are further apart than rounding explains, also with the shift multiplied; or the inputs
            reach nothing.
    """
    plain = _run(model, inputs)
    if not plain:
        raise InterventionError(f"{type(model).__name__} gave no outputs to compare; give inputs=")
    # Norms compute in fp32 also where the model is in fp64.
    tolerance = max(TOLERANCE.get(plain[0].dtype, 5e-2), FINEST)
    difference = effect = 0.0
    times = 1.0
    for step in range(STEPS):
        biases.set(times)
        steered = _steered(model, interventions, times, inputs, model_map)
        off, moved = distance(_run(folded, inputs), steered), distance(steered, plain)
        if step == 0:
            difference, effect = off, moved
        if off > tolerance:
            raise InterventionError(_wrong(off, tolerance, times))
        if moved >= VISIBLE:
            break
        times *= min(2 * VISIBLE / moved, STEP) if moved else STEP
    biases.set(1.0)
    return difference, effect


def _steered(
    model: Any, interventions: Sequence[Intervention], times: float, inputs: Mapping[str, Any], model_map: ModelMap
) -> list[torch.Tensor]:
    try:
        with attach(model, [_multiplied(item, times) for item in interventions], model_map=model_map, measure="none"):
            return _run(model, inputs)
    except NeverFiredError as error:
        raise InterventionError(
            f"the fold cannot be tried on these inputs: {error}. Give inputs= that reach it"
        ) from error


def _multiplied(item: Intervention, times: float) -> Intervention:
    assert isinstance(item.op, Add)
    return item if times == 1.0 else replace(item, op=replace(item.op, scale=item.op.scale * times))


def _run(model: Any, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return tensors(model(**inputs))


def _wrong(off: float, tolerance: float, times: float) -> str:
    much = "" if times == 1.0 else f" with the shift multiplied by {times:.0f}"
    return (
        f"the folded model's outputs are {off:.1e} of the largest from the session's{much}, more than {tolerance:.0e}: "
        "something in this model (a norm, a scale, a gate, weights shared by layers) stands between the bias and the "
        "site; fold at head_out, or use steer.attach"
    )
