"""What a run is asked for, and the checks that both command lines share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .cases import KERNELS, tasks
from .task import DTYPES, Task

# As torch names them, and as rows do.
SHORT = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Options:
    """One run.

    Attributes:
        quick: tiny sizes and few rounds, without torch.compile, to see that everything works; the figures mean
            nothing.
        only: rows whose name contains this.
        kernels: these operations only; empty: all.
        dtypes: these only, by torch's names or the rows' own; empty: all.
        device: as torch names it; None: a GPU where there is one.
        threads: of torch on a CPU; None: as it is.
        rounds: how often everything is timed; None: by device.
        limit: seconds after which no further row is begun; None: no limit.
        compiled: race torch.compile on the large rows.
        seed: of inputs and orders.
        json, csv, plot: files to write.
    """

    quick: bool = False
    only: str | None = None
    kernels: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    device: str | None = None
    threads: int | None = None
    rounds: int | None = None
    limit: float | None = None
    compiled: bool = True
    seed: int = 0
    json: Path | None = None
    csv: Path | None = None
    plot: Path | None = None

    @property
    def on(self) -> torch.device:
        """The device; a GPU by its number."""
        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return torch.device("cuda", device.index or 0) if device.type == "cuda" else device

    @property
    def scale(self) -> str:
        """Which sizes."""
        return "quick" if self.quick else "cuda" if self.on.type == "cuda" else "cpu"

    def chosen(self) -> list[Task]:
        """The rows that were asked for.

        Raises:
            ValueError: an unknown kernel or dtype, a folder that does not exist, no GPU, or nothing left to run.
        """
        dtypes = [SHORT.get(name, name) for name in self.dtypes]
        for what, asked, known in (("kernel", self.kernels, KERNELS), ("dtype", dtypes, tuple(DTYPES))):
            for name in asked:
                if name not in known:
                    near = difflib.get_close_matches(name, known, 1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise ValueError(f"there is no {what} {name!r}: there are {', '.join(known)}{hint}")
        if self.on.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device} was asked for, and torch finds no GPU")
        for file in (self.json, self.csv, self.plot):
            if file is not None and not file.absolute().parent.is_dir():
                raise ValueError(f"{file} cannot be written: there is no folder {file.absolute().parent}")
        every = tasks(self.scale)
        found = [
            task
            for task in every
            if (not self.kernels or task.kernel in self.kernels)
            and (not dtypes or task.short in dtypes)
            and (not self.only or self.only in task.label)
        ]
        if not found:
            raise ValueError(f"no row is left to run; one is called {every[0].label!r}")
        return found
