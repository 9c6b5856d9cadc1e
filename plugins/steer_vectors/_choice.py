"""What the methods of this package share: the tensors they must have, and the choice of a layer by trying each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import steer
from steer import fitting, prompts


def fitted(method: steer.Method, name: str) -> torch.Tensor:
    """A tensor that `fit` makes.

    Raises:
        SteerError: the method was not fitted.
    """
    if name not in method.tensors:
        raise steer.SteerError(
            f"method {method.name!r} must be fitted first: "
            f"steer.create({method.name!r}).fit(model, processor, examples)"
        )
    return method.tensors[name]


def best_layer(
    model: Any,
    batches: Sequence[prompts.Batch],
    layers: Sequence[int],
    change: Callable[[int], steer.Intervention],
    *,
    description: str,
    progress: bool,
) -> tuple[int, torch.Tensor]:
    """Try an intervention at each layer and keep the layer that answers best.

    Args:
        model: the model.
        batches: queries with answers that the intervention has not seen.
        layers: the layers to try.
        change: the intervention at one layer.
        description: beside the progress bar.
        progress: show the bar.

    Returns:
        The layer with the highest accuracy, of equals the one that gives the right answers more probability, of equals
        the first; and the accuracy at each layer tried, (len(layers),).
    """
    found = [
        fitting.score(model, batches, change(layer)) for layer in fitting.track(layers, description, progress=progress)
    ]
    ranks = [(one.accuracy, float(one.log_prob.mean())) for one in found]
    return layers[max(range(len(layers)), key=lambda i: (ranks[i], -i))], torch.tensor([one.accuracy for one in found])
