"""What goes into a suite's scoring and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..examples import Example
from ._resampling import Estimate, McNemar


@dataclass(frozen=True)
class Question:
    """One question of a suite.

    Attributes:
        key: which one it is; no other question that is asked with it has this key.
        group: the part of the suite that it is in, such as the file that it came from; scored apart.
        example: the words, the right answer where there is one, and the pictures.
        cluster: what it has in common with others, such as the picture's name: whole clusters are resampled.
        facts: what scoring needs besides, as the suite wants it.
    """

    key: str
    group: str
    example: Example
    cluster: str
    facts: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Score:
    """How one way of answering did on one part of a suite.

    Attributes:
        group: the part; "all" for all parts together, where there are several.
        n: how many questions.
        metrics: by name, each with its 95 % interval.
    """

    group: str
    n: int
    metrics: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"group": self.group, "n": self.n} | {name: one.to_dict() for name, one in self.metrics.items()}


@dataclass(frozen=True)
class Comparison:
    """One way of answering against another on one part of a suite.

    Attributes:
        group: as in `Score`.
        n: how many questions, the same for both.
        differences: of every metric, the first minus the second, with its 95 % interval.
        mcnemar: on which questions were right.
    """

    group: str
    n: int
    differences: dict[str, Estimate]
    mcnemar: McNemar

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        differences = {name: one.to_dict() for name, one in self.differences.items()}
        test = {"gained": self.mcnemar.gained, "lost": self.mcnemar.lost, "p": self.mcnemar.p}
        return {"group": self.group, "n": self.n, "differences": differences, "mcnemar": test}
