"""An intervention: where, which rows, what is done, how strongly."""

from __future__ import annotations

from dataclasses import dataclass

from .contrast import Contrast
from .errors import InterventionError
from .gates import Gate
from .ops import Around, Keep, KeyBias, Op, Prefix
from .sites import Site


@dataclass(frozen=True, eq=False)
class Intervention:
    """One change to make to a model's forward.

    Attributes:
        site: from `steer.sites`, with layers, heads, tower and positions.
        op: from `steer.ops`.
        gate: from `steer.gates`; None acts fully.
        name: shown in the report; by default made of the op and the site.

    Raises:
        InterventionError: the op makes no sense at the site, or the gate with either.
    """

    site: Site
    op: Op | Keep | KeyBias | Prefix | Around | Contrast
    gate: Gate | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.site, Site):
            raise InterventionError(f"site must come from steer.sites, got {self.site!r}")
        allowed = getattr(self.op, "sites", None)
        if allowed is None:
            raise InterventionError(f"op must come from steer.ops, got {self.op!r}")
        kind = type(self.op).__name__
        if self.site.name not in allowed:
            raise InterventionError(f"ops.{kind} cannot act at {self.site.name!r}; it can at {', '.join(allowed)}")
        if self.gate is None:
            return
        if self.site.name in ("kv_prefix", "cache", "call"):
            raise InterventionError(f"site {self.site.name!r} takes no gate")
        needs_query = self.gate.needs_query or self.gate.needs_lse
        if needs_query and self.site.name not in ("head_q", "head_out", "key_bias"):
            raise InterventionError(
                f"gates.{type(self.gate).__name__} reads the query, which {self.site.name!r} does not have; "
                "use it at head_q, head_out or key_bias, or with of_query=False"
            )

        if self.gate.needs_lse and self.site.name == "head_q":
            raise InterventionError(
                f"gates.{type(self.gate).__name__} reads the log-sum-exp of the scores, which are not made yet at "
                "'head_q'; use it at head_out or key_bias, or without minus_lse"
            )

    @property
    def label(self) -> str:
        """The name, or the op and the site in words."""
        return self.name or f"{type(self.op).__name__} at {self.site.name}"
