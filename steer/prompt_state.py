"""One state for each prompt, handed over as the prompt passes a site: what a decision about the prompt is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ._frame import Frame
from ._params import Slot
from ._teacher_forcing import inputs_of, still
from .contrast import aside
from .errors import InterventionError
from .gates import BoundGate, Reading
from .intervention import Intervention
from .ops import BoundOp
from .prompts import Batch
from .session import attach
from .sites import WIDTH_SITES, Site

__all__ = ["Pool", "PromptState", "prompt_states"]

Pool = Literal["mean", "last"]


@dataclass(frozen=True, eq=False)
class PromptState:
    """An op that changes nothing: it hands `take` one state per row of the batch, (B, D) fp32, at every prompt.

    At `head_out` a state is (H, d), of all heads.

    Only real rows of the prompt count: no padding, and nothing that was written after it, also where both pass in one
    forward. A forward that holds only what comes after the prompt hands nothing over.

    Attributes:
        take: called in the forward, on the tensor's device.
        pool: `"mean"` over the prompt's tokens, or its `"last"` one.
    """

    take: Callable[[torch.Tensor], None]
    pool: Pool = "mean"
    sites: ClassVar[tuple[str, ...]] = (*WIDTH_SITES, "head_out")
    needs_frame: ClassVar[bool] = True

    def bind(self, slot: Slot, gate: BoundGate | None) -> BoundOp:
        def read(x: torch.Tensor, reading: Reading, rows: torch.Tensor | None) -> torch.Tensor:
            assert reading.frame is not None
            if aside():  # a decision about a prompt is made in the model's own stream
                return x
            if reading.frame.offset < reading.frame.prompt_length:
                self.take(_pooled(x, reading.frame, self.pool, slot.where))
            return x

        return read


def _pooled(x: torch.Tensor, frame: Frame, pool: Pool, where: str) -> torch.Tensor:
    end = frame.prompt_length
    if frame.offset or frame.length < end:
        raise InterventionError(
            f"{where}: the state of a prompt is read in one forward, and this one holds rows {frame.offset} to "
            f"{frame.offset + frame.length} of {end}; do not give the prompt in pieces (prefill_chunk_size)"
        )
    wide = x if x.dtype == torch.float64 else x.float()
    if pool == "last":
        last = frame.last_prompt_slot()
        if isinstance(last, int):
            return wide[:, last]
        return wide[torch.arange(x.shape[0], device=x.device), last.to(x.device)]
    if frame.padding is None:
        return wide[:, :end].mean(1)
    real = frame.padding[:, :end].to(x.device, wide.dtype).view(-1, end, *[1] * (x.ndim - 2))
    return (wide[:, :end] * real).sum(1) / real.sum(1).clamp_min(1)


def prompt_states(
    model: Any, batches: Iterable[Batch], sites: Sequence[Site], pool: Pool = "mean"
) -> list[torch.Tensor]:
    """The states of many prompts at some sites, as a `PromptState` there would hand them over.

    Args:
        model: any mapped model.
        batches: from `steer.prompts`.
        sites: each with one layer.
        pool: as in `PromptState`.

    Returns:
        For each site (N, D), or (N, H, d) at `head_out`, fp32, on the CPU.
    """
    kept: list[list[torch.Tensor]] = [[] for _ in sites]

    def keep(place: list[torch.Tensor]) -> Callable[[torch.Tensor], None]:
        return lambda state: place.append(state.cpu())

    items = [Intervention(site, PromptState(keep(place), pool)) for site, place in zip(sites, kept, strict=True)]
    with still(model), torch.no_grad():
        for batch in batches:
            inputs, length = inputs_of(model, batch)
            with attach(model, items, measure="none", prompt_length=length):
                model(**inputs)
    return [torch.cat(place) for place in kept]
