"""What the methods of this package share: what they need, and the choice of a layer by trying each."""

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


def split(
    model: Any,
    processor: Any,
    examples: Sequence[steer.Example],
    dev: Sequence[steer.Example] | None,
    seed: int,
    method: str,
) -> tuple[list[steer.Example], list[steer.Example]]:
    """The examples to fit on and those to choose by: `dev` if it is given, else a quarter of the examples."""
    fitting.check(model, processor, examples, at_least=4, method=method)
    if dev is None:
        return fitting.hold_out(examples, seed=seed)
    fitting.check(model, processor, dev, at_least=1, method=method)
    return list(examples), list(dev)


def best_layer(
    model: Any,
    queries: Sequence[prompts.Batch],
    layers: Sequence[int],
    change: Callable[[int], steer.Intervention],
    *,
    description: str,
    progress: bool,
) -> tuple[int, torch.Tensor]:
    """Try an intervention at each layer and keep the layer that answers best.

    Args:
        model: the model.
        queries: with answers that the intervention has not seen.
        layers: the layers to try.
        change: the intervention at one layer.
        description: beside the progress bar.
        progress: show the bar.

    Returns:
        The layer with the highest accuracy, of equals the one that gives the right answers more probability, of equals
        the first; and the accuracy at each layer tried, (len(layers),).
    """
    tried = fitting.track(layers, description, progress=progress)
    found = [fitting.score(model, queries, change(layer)) for layer in tried]
    ranks = [(one.accuracy, float(one.log_prob.mean()), -i) for i, one in enumerate(found)]
    return layers[ranks.index(max(ranks))], torch.tensor([one.accuracy for one in found])
