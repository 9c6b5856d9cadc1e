"""How a fit is run: the same options for every method that is fitted by gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..errors import InterventionError, unknown_name


@dataclass(frozen=True)
class Options:
    """Options of `fit`, given to it as keywords.

    Attributes:
        lr: the learning rate at its height.
        epochs: passes over the examples.
        max_steps: stop after so many steps instead; the schedule is stretched to them.
        batch_size: examples in one step, over all processes.
        micro_batch_size: examples in one forward of one process; None for as many as there are. Changes memory, not the
            result.
        warmup_ratio: share of the steps in which the learning rate rises.
        weight_decay: the optimiser's: decoupled in AdamW, added to the gradient in SGD.
        max_grad_norm: gradients longer than this, all together, are scaled down to it; 0 never.
        eval_every: steps between looks at `dev`; None for once an epoch.
        patience: stop after so many looks in a row without a better one; None never.
        checkpoint_every: steps between checkpoints; None for at every look at `dev`.
        gradient_checkpointing: recompute layers in the backward pass instead of keeping what they made.
        optimizer: `adamw` or `sgd`.
        momentum: SGD's.
        schedule: `linear`: the rate rises linearly over `warmup_ratio` of the steps and falls as a cosine to 0.
            `epochs` (CoOp's): the first epoch at `warmup_lr`, then a cosine that changes between epochs only.
        warmup_lr: the learning rate of the first epoch of the schedule `epochs`.
    """

    lr: float = 5e-3
    epochs: int = 10
    max_steps: int | None = None
    batch_size: int = 16
    micro_batch_size: int | None = None
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: int | None = None
    patience: int | None = 3
    checkpoint_every: int | None = None
    gradient_checkpointing: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    schedule: Literal["linear", "epochs"] = "linear"
    warmup_lr: float = 1e-5

    def __post_init__(self) -> None:
        counts = ("epochs", "max_steps", "batch_size", "micro_batch_size", "eval_every", "patience", "checkpoint_every")
        for name in counts:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InterventionError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("lr", "warmup_ratio", "weight_decay", "max_grad_norm", "momentum", "warmup_lr"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise InterventionError(f"{name} must be a number of at least 0, got {value!r}")
        if self.lr == 0:
            raise InterventionError("lr must be above 0, got 0")
        if self.warmup_ratio > 1:
            raise InterventionError(f"warmup_ratio must be from 0 to 1, got {self.warmup_ratio!r}")
        for name, known in (("optimizer", ("adamw", "sgd")), ("schedule", ("linear", "epochs"))):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if self.schedule == "epochs" and self.max_steps is not None:
            raise InterventionError('schedule="epochs" counts epochs; give epochs, not max_steps')

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """From `fit`'s keywords.

        Raises:
            UnknownNameError: there is no such option; the message has the nearest.
            InterventionError: a value that makes no sense.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise unknown_name("option of fit", name, known)
        return cls(**options)

    def steps(self, examples: int) -> int:
        """How many steps there are with so many examples."""
        return self.max_steps or self.epochs * math.ceil(examples / self.batch_size)

    def optimiser(self, groups: Iterable[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)

    def lr_factor(self, step: int, steps: int) -> float:
        """What the learning rate is multiplied by at a step, from 0."""
        if self.schedule == "epochs":
            epoch = step // max(1, steps // self.epochs)
            return self.warmup_lr / self.lr if epoch == 0 else 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self.epochs))
        rising = math.ceil(self.warmup_ratio * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
