"""What becomes of a step, a recording or a function where this process holds some of the heads only.

An op that treats each head by itself is given its slice of the parameters and acts on the heads that are here. Anything
else sees all heads, brought together for it, so that it decides the same in every process; of what it makes, each takes
its own. Recordings bring all heads together too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from . import gates, ops
from ._params import Slot
from ._sharding import Share
from ._step import Place, RowChoice, Step, Tally
from .errors import MappingError

if TYPE_CHECKING:
    from ._attention import AttentionPlan
    from .memory.seen import Seen
    from .model_map import Attention

_APART_OPS = (ops.Add, ops.Replace, ops.Scale, ops.Rotate, ops.LowRankQuery)
_APART_GATES = (gates.Sigmoid, gates.Cosine, gates.Threshold, gates.Given)


def apart(thing: Any) -> bool:
    """Whether an op or a gate (or None) treats each head by itself; a stranger's says so by an attribute `apart`."""
    return thing is None or type(thing) in _APART_OPS + _APART_GATES or bool(getattr(thing, "apart", False))


def learns(*things: Any) -> bool:
    """Whether some parameter of an op or a gate takes gradients."""
    values = [value for thing in things if thing is not None for value in getattr(thing, "__dict__", {}).values()]
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


@dataclass
class Away:
    """An intervention whose heads are all elsewhere: it counts its rows and hands the tensor on as it is."""

    place: Place
    choice: RowChoice
    tally: Tally = field(default_factory=Tally)
    needs_query: bool = False
    needs_lse: bool = False

    def __call__(
        self, x: torch.Tensor, query: torch.Tensor | None = None, lse: torch.Tensor | None = None
    ) -> torch.Tensor:
        batch, length = x.shape[0], x.shape[-3]
        rows = self.choice.of(batch, length, x.device, self.place)
        if isinstance(rows, torch.Tensor):
            self.tally.count(0)
            self.tally.rows = self.tally.rows + rows.sum()
        elif not isinstance(rows, str):
            count = len(range(length)[rows]) if isinstance(rows, slice) else length
            self.tally.count(x[..., 0, 0, 0].numel() * count)
        return x


@dataclass
class Together:
    """A step that sees all heads; of what it makes this process takes its own."""

    step: Step
    share: Share

    @property
    def choice(self) -> RowChoice:
        return self.step.choice

    @property
    def tally(self) -> Tally:
        return self.step.tally

    @property
    def needs_query(self) -> bool:
        return self.step.needs_query

    @property
    def needs_lse(self) -> bool:
        return self.step.needs_lse

    def __call__(
        self, x: torch.Tensor, query: torch.Tensor | None = None, lse: torch.Tensor | None = None
    ) -> torch.Tensor:
        whole = self.share.whole
        query = None if query is None else whole(query, -2)
        lse = None if lse is None else whole(lse, -1)
        return self.share.own(self.step(whole(x, -2), query, lse), -2)


@dataclass
class Counted:
    """Checks that attention received as many heads as were expected here."""

    place: Place
    choice: RowChoice
    heads: int
    path: str
    needs_query: bool = False
    needs_lse: bool = False

    def __call__(
        self, x: torch.Tensor, query: torch.Tensor | None = None, lse: torch.Tensor | None = None
    ) -> torch.Tensor:
        if x.shape[-2] != self.heads:
            raise MappingError(
                f"{self.path}: its attention received {x.shape[-2]} heads in this process, and {self.heads} were "
                "expected from the plan by which the model is spread"
            )
        return x


def bound_gate(gate: gates.Gate, slot: Slot, share: Share | None) -> gates.BoundGate:
    """A gate of all heads of an attention, bound to one layer, that gives the strengths of the heads here."""
    if share is None:
        return gate.bind(slot)
    if apart(gate):
        return gate.bind(replace(slot, heads=share.count, held=(share.total, share.places(None))))
    bound = gate.bind(slot)

    def strength(x: torch.Tensor, reading: gates.Reading) -> torch.Tensor:
        lse = None if reading.lse is None else share.whole(reading.lse, -1)
        whole = share.whole(x, -2)
        made = bound(whole, gates.Reading(whole, lse))
        return share.own(made, -2) if made.shape[-2] == share.total else made

    return strength


def refuse_masks(place: Place, mixer: Attention, queries: Share | None, keys: Share | None) -> None:
    """Raise where a key-value head is in every process and the queries are spread.

    transformers then counts the queries of a head wrongly wherever there is a mask.

    Raises:
        MappingError: it names the module.
    """
    if queries is not None and keys is None:
        raise MappingError(
            f"{place}: {mixer.path} has its {mixer.num_heads} query heads spread and its key-value head in every "
            "process, and then transformers runs no attention with a mask, which this needs"
        )


def count_heads(plan: AttentionPlan, whole: Attention, here: Attention, choice: RowChoice) -> None:
    """Have an attention of which only some heads are here checked for as many as the plan says."""
    for name, told, held in (
        ("queries", whole.num_heads, here.num_heads),
        ("keys", whole.num_kv_heads, here.num_kv_heads),
    ):
        if held is not None and held != told:
            place = Place(f"head_{name[0]}", "", -1, has_heads=True)
            getattr(plan, name).append(Counted(place, choice, held, whole.path))


def whole_recording(keep: Callable[[Place, Any], None], place: Place, share: Share) -> Callable[[Place, Any], None]:
    """A recording that is given all heads, and of them the chosen ones; tensors are (..., H, d)."""

    def record(_: Place, x: torch.Tensor) -> None:
        found = share.whole(x, -2)
        keep(place, found if place.heads is None else found[..., list(place.heads), :])

    return record


def whole_cache(function: Callable[..., Any], share: Share, mixer: Attention) -> Callable[..., Any]:
    """A function (keys, values) -> (keys, values), each (B, H_kv, S, d), that is given all heads."""

    def apply(keys: torch.Tensor, values: torch.Tensor) -> Any:
        if keys.shape[1] != share.count or keys.shape[-1] != mixer.head_dim:
            return function(keys, values)  # not heads but what they are made from, which every process has
        made = function(share.whole(keys, 1), share.whole(values, 1))
        fits = isinstance(made, tuple) and all(
            isinstance(t, torch.Tensor) and t.ndim == 4 and t.shape[1] == share.total for t in made
        )
        return tuple(share.own(t, 1).contiguous() for t in made) if fits else made

    return apply


def whole_choice(
    function: Callable[[Seen], torch.Tensor | None], queries: Share | None, keys: Share
) -> Callable[[Seen], torch.Tensor | None]:
    """A choice of tokens that is made from all heads, and so is the same in every process."""

    def choose(seen: Seen) -> torch.Tensor | None:
        width = seen.key.shape[2]
        most = keys.most(width, seen.key.device)

        def grown(x: torch.Tensor, axis: int) -> torch.Tensor:
            """Heads elsewhere may have kept more: as wide as the widest, and then all of them."""
            short = [*x.shape[:axis], most - width, *x.shape[axis + 1 :]]
            return keys.whole(torch.cat([x, x.new_zeros(short)], axis) if most > width else x, 1)

        of_heads = seen.slots.expand(-1, seen.key.shape[1], -1)
        slots = grown(of_heads, 2)
        alike = bool((slots == slots[:, :1]).all())
        keep = function(
            replace(
                seen,
                query=seen.query if queries is None else queries.whole(seen.query, 1),
                key=grown(seen.key, 2),
                value=grown(seen.value, 2),
                slots=slots[:, :1] if alike else slots,
                real=grown(seen.real, 2),
                fresh=grown(seen.fresh, 2),
            )
        )
        if keep is None or keep.ndim != 3 or keep.shape[1] != keys.total:
            return keep
        return keys.own(keep, 1)[..., :width].contiguous()

    return choose
