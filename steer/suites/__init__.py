"""Public benchmarks, read from the files in which they are published: what a model says, and numbers with intervals.

`pope` and `chair` are suites: `load` their files, `ask` a model with a method or without, `score` and `compare` the
answers. `metrics` has calibration, abstention and intervals by themselves. `steer eval --suite` is the command for it.
"""

from . import metrics
from ._asking import Answer
from ._chair import Chair
from ._parts import Comparison, Question, Score
from ._pope import Pope
from ._registry import SuiteRegistry, suites
from ._suite import Suite
from .metrics import Estimate

chair = Chair()
"""CHAIR (Rohrbach et al., 2018)."""
pope = Pope()
"""POPE (Li et al., 2023)."""

__all__ = [
    "Answer", "Comparison", "Estimate", "Question", "Score", "Suite", "SuiteRegistry", "chair", "metrics", "pope",
    "suites",
]  # fmt: skip
