"""The kernels' benchmark: `python -m steer_kernels.bench`, and `steer bench`, which takes the same options.

`task.py` says what a row of it is, `cases/` lists the rows, `eager.py` has the formulas that a reader would write,
`rivals.py` other people's kernels, `timing.py`, `heap.py` and `peak.py` measure,
`run.py` puts it together.
"""

from __future__ import annotations

from .options import Options
from .run import run

__all__ = ["Options", "run"]
