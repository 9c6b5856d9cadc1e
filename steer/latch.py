"""A decision about each row of a batch, made when its prompt passes and kept for every token written after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import gates, sites
from .errors import InterventionError
from .intervention import Intervention
from .prompt_state import Pool, PromptState

__all__ = ["Latch", "Latched", "check_order", "latched"]


class Latch:
    """The latest prompt's strengths. One for each attach: sessions share nothing, and a new prompt decides anew.

    Args:
        decide: from one state per row, (B, D), to strengths in fp32, (B, members).
    """

    def __init__(self, decide: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._decide = decide
        self._strengths: torch.Tensor | None = None

    def take(self, state: torch.Tensor) -> None:
        """Decide."""
        self._strengths = self._decide(state)

    def strength(self, member: int, x: torch.Tensor, where: str) -> torch.Tensor:
        """A member's strength in each row of x (B, ...): (B, 1, ...), with as many dimensions as x.

        Raises:
            InterventionError: no prompt has passed, or it had other rows.
        """
        if self._strengths is None:
            raise InterventionError(
                f"{where}: nothing has been decided, because no prompt has passed inside this session; "
                "start it before the prompt is read, not between the prompt and what is written after it"
            )
        decided = self._strengths[:, member].to(x.device)
        # Beams of one prompt lie side by side, whether they were made before the prompt was read or after.
        if x.shape[0] % decided.shape[0]:
            raise InterventionError(
                f"{where}: the decision was made for {decided.shape[0]} rows and the batch has {x.shape[0]}; "
                "read the prompts anew when the batch changes"
            )
        rows = decided.repeat_interleave(x.shape[0] // decided.shape[0])
        return rows.view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, eq=False)
class Latched:
    """The gate that reads a latch, times the gate that the intervention had before.

    Attributes:
        latch: where the decision is kept.
        member: which column of it.
        before: the other gate, or None.
    """

    latch: Latch
    member: int = 0
    before: gates.Gate | None = None

    @property
    def needs_query(self) -> bool:
        return self.before is not None and self.before.needs_query

    @property
    def needs_lse(self) -> bool:
        return self.before is not None and self.before.needs_lse

    def bind(self, slot: Any) -> gates.BoundGate:
        before = None if self.before is None else self.before.bind(slot)

        def gate(x: torch.Tensor, reading: gates.Reading) -> torch.Tensor:
            strength = self.latch.strength(self.member, x, slot.where)
            return strength if before is None else strength * before(x, reading)

        return gate


def latched(
    members: Sequence[Sequence[Intervention]],
    decide: Callable[[torch.Tensor], torch.Tensor],
    layer: int,
    pool: Pool,
) -> list[Intervention]:
    """Interventions that act in a row of the batch as its prompt decides.

    Args:
        members: of each member, such as a wrapped method, at layers from `layer` on; a member is a column of strengths.
        decide: as in `Latch`.
        layer: the decision is made from the residual stream before this layer.
        pool: as in `steer.prompt_state`.

    Returns:
        First the one that decides, then the members'.
    """
    latch = Latch(decide)
    reads = Intervention(sites.resid_in(layer), PromptState(latch.take, pool), name="decides by the prompt")
    gated = [
        replace(item, gate=Latched(latch, index, item.gate)) for index, items in enumerate(members) for item in items
    ]
    return [reads, *gated]


def check_order(layer: int, first: int, method: str) -> None:
    """Raise an InterventionError if a decision before `layer` comes too late for shifts that begin at `first`."""
    if layer > first:
        raise InterventionError(
            f"method {method!r} decides before layer {layer}, and what obeys it acts at layer {first} already; "
            f"read the condition at layer {first} or before (layer=...), or let the shifts act later"
        )
