"""FastV: most image tokens are of no use after the first layers (Chen et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from steer.errors import InterventionError
from steer.memory import Chooser, Seen
from steer.memory.scorer import over_heads, places


@dataclass
class FastV(Chooser):
    """Drops the image tokens that the prompt's last query attends to least, in the layers from `start` on.

    Score: mean over all heads of softmax_j(q_last . k_j / sqrt d) in the last layer before `start` that can be pruned,
    or where there is none in the first one after; it decides for all later layers. Tokens that are no image stay.

    Source: https://arxiv.org/abs/2403.06764. The authors drop hidden states, so that the prompt's own later layers do
    not see the tokens either; here they are dropped from the cache, and what is written later does not see them.

    Attributes:
        keep: share of each row's image tokens, above 0 and at most 1, rounded down, but one at least.
        start: the first layer that drops tokens (K).
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "https://arxiv.org/abs/2403.06764"
    summary: ClassVar[str] = "Drops image tokens that the last token does not attend to."

    keep: float = 0.5
    start: int = 2
    _at: tuple[int, torch.Tensor | None] = field(default=(-1, None), init=False, repr=False, compare=False)

    needs_images = True

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InterventionError(f"keep is a share of the image tokens, above 0 and at most 1; got {self.keep!r}")
        if self.start < 0:
            raise InterventionError(f"start is the first layer that drops tokens, 0 or more; got {self.start!r}")

    def choose(self, seen: Seen) -> torch.Tensor | None:
        """Everything but the image tokens that were ranked last, bool (B, H_kv, S); None before `start`."""
        layer, going = self._at
        if going is None or seen.layer <= max(layer, self.start - 1):
            going = self._going(seen)
        self._at = seen.layer, going
        if seen.layer < self.start:
            return None
        slots = seen.slots.expand(seen.real.shape)
        dropped = going[:, None].expand(-1, slots.shape[1], -1).gather(2, slots) & seen.real & seen.fresh
        return seen.real & ~dropped if bool(dropped.any()) else None

    def _going(self, seen: Seen) -> torch.Tensor:
        """Which slots of the sequence hold an image token that is dropped, bool (B, S_seq)."""
        score = over_heads(seen.mass(1, reduce="mean"), seen)
        free = seen.image() & seen.fresh
        count = (free.sum(-1).double() * self.keep + 1e-6).floor().clamp(min=1)
        going = (free & (places(score, free, free.long()) >= count[..., None]))[:, 0]
        slots = seen.slots.expand(seen.real.shape)[:, 0]
        found = torch.zeros(going.shape[0], int(seen.query_slots[-1]) + 1, dtype=torch.long, device=going.device)
        return found.scatter_add(1, slots, going.long()) > 0
