"""One way of naming classes on the two halves of them: those that methods are fitted on, and the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._accuracy import Row


@dataclass(frozen=True)
class BaseNew:
    """How one way did on the classes that methods are fitted on, and on the others.

    Attributes:
        name: of the way.
        base: on pictures of the base classes, among these.
        new: the same of the new ones; None for a way that has nothing to say about other classes.
        why_not: and why.
    """

    name: str
    base: Row
    new: Row | None
    why_not: str | None = None

    @property
    def harmonic(self) -> float | None:
        """Of the two accuracies."""
        from .._accuracy import harmonic_mean

        return None if self.new is None else harmonic_mean(self.base.accuracy, self.new.accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        new = None if self.new is None else self.new.to_dict()
        found = {"name": self.name, "base": self.base.to_dict(), "new": new, "harmonic_mean": self.harmonic}
        return found if self.why_not is None else {**found, "why_not": self.why_not}
