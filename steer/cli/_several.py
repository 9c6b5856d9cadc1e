"""Examples of several `--data`, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..examples import Example


@dataclass(frozen=True)
class Several:
    """What `--data` was given, each with its examples.

    Attributes:
        sources: as they were written, with what was read there.
    """

    sources: Sequence[tuple[str, Sequence[Example]]]

    @property
    def examples(self) -> list[Example]:
        """Of all sources, one after the other."""
        return [one for _, found in self.sources for one in found]

    def places(self) -> list[tuple[str, list[int]]]:
        """Each source with the places of its examples among all of them."""
        found, start = [], 0
        for source, mine in self.sources:
            found.append((source, list(range(start, start + len(mine)))))
            start += len(mine)
        return found
