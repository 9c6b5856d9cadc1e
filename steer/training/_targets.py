"""What the teacher made of each example, kept in memory or on disk: one safetensors file for each batch of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import FileFormatError
from ..files import write_whole

KINDS = ("logits", "states")


@dataclass(frozen=True)
class Seen:
    """What the teacher made of one example.

    Attributes:
        logits: (A, V), the scores from which each token of the answer is written; None if not asked for.
        states: (L, n, D), what passes the site at the last n tokens of query and answer, which are those that the
            student reads too; None if not asked for.
        rows: n.
    """

    logits: torch.Tensor | None
    states: torch.Tensor | None
    rows: int


@dataclass
class Targets:
    """Where targets are kept.

    Attributes:
        size: how many examples there are.
        part_size: examples in one part, that is in one file.
        folder: where the files are; None keeps the targets in memory.
    """

    size: int
    part_size: int
    folder: Path | None
    _memory: dict[int, Seen] = field(default_factory=dict, repr=False)

    @property
    def parts(self) -> list[range]:
        """The examples of each part."""
        starts = range(0, self.size, self.part_size)
        return [range(start, min(start + self.part_size, self.size)) for start in starts]

    def missing(self, process: int = 0, processes: int = 1) -> list[range]:
        """The parts that one of several processes has to make.

        On disk they share the work; in memory each needs its own. Whose a part is depends on its number alone: while
        one process looks at what is missing, another may have written its first file.
        """
        if self.folder is None:
            return [part for part in self.parts if part.start not in self._memory]
        return [part for part in self.parts[process::processes] if not self._path(part).exists()]

    def keep(self, part: range, found: Sequence[Seen]) -> None:
        """Keep the targets of one part."""
        if self.folder is None:
            self._memory.update(zip(part, found, strict=True))
            return
        tensors = {f"{i}.rows": torch.tensor(one.rows) for i, one in zip(part, found, strict=True)}
        for i, one in zip(part, found, strict=True):
            kinds = zip(KINDS, (one.logits, one.states), strict=True)
            tensors |= {f"{i}.{kind}": value.contiguous() for kind, value in kinds if value is not None}
        write_whole(self._path(part), save(tensors))

    def of(self, index: int) -> Seen:
        """The targets of one example.

        Raises:
            FileFormatError: its file is damaged.
        """
        if self.folder is None:
            return self._memory[index]
        path = self._path(self.parts[index // self.part_size])
        try:
            with safe_open(path, framework="pt") as file:
                names = {kind: f"{index}.{kind}" for kind in KINDS if f"{index}.{kind}" in file.keys()}  # noqa: SIM118
                found = {kind: file.get_tensor(name) for kind, name in names.items()}
                rows = int(file.get_tensor(f"{index}.rows"))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise FileFormatError(f"{path} is damaged: {error}; delete it to have it made again") from error
        return Seen(found.get("logits"), found.get("states"), rows)

    def _path(self, part: range) -> Path:
        assert self.folder is not None
        return self.folder / f"{part.start:06d}-{part.stop:06d}.safetensors"
