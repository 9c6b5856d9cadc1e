"""Where a profile stands, in one file that is there whole or not at all: safetensors, with the plain facts as JSON."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import FileFormatError, SteerError
from ..files import write_whole

NAME = "profile.safetensors"
SECONDS = 30.0
"""How often it is written; besides that at the end of each pass, and when the run is broken off."""


@dataclass
class State:
    """What was measured so far.

    Attributes:
        folder: where it is kept; None: nowhere.
        identity: plain data, the same for two profiles only where they would find the same.
        tensors: what passes keep, and as "done.PASS" how many samples each has seen. Never changed in place, so that
            a run can be broken off anywhere.
    """

    folder: Path | None
    identity: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    _written: float = field(default_factory=time.monotonic)

    def done(self, name: str) -> int:
        """How many samples a pass has seen."""
        return int(self.tensors.get(f"done.{name}", 0))

    def add(self, name: str, done: int, new: dict[str, torch.Tensor]) -> None:
        """Add what a pass found in more samples: sums grow, tables get longer."""
        kept = {**self.tensors, f"done.{name}": torch.tensor(done)}
        for key, value in new.items():
            before = kept.get(key)
            if before is None:
                kept[key] = value
            else:
                kept[key] = before + value if key.startswith("sum.") else torch.cat([before, value])
        self.tensors = kept

    def keep(self, *, now: bool = False) -> None:
        """Write the file, if it is time or must be done now."""
        if self.folder is None or not self.tensors or (not now and time.monotonic() - self._written < SECONDS):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"identity": json.dumps(self.identity, sort_keys=True)}
        write_whole(self.folder / NAME, save({k: v.contiguous() for k, v in self.tensors.items()}, metadata=facts))
        self._written = time.monotonic()


def resume(folder: Path | None, identity: dict[str, Any]) -> State:
    """A new state, or the one that the folder holds.

    Raises:
        SteerError: it is of another profile.
        FileFormatError: the file is damaged.
    """
    path = None if folder is None else folder / NAME
    if path is None or not path.exists():
        return State(folder, identity)
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        saved = json.loads(facts["identity"])
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged: {error}; delete it to profile from the start") from error
    wanted = json.loads(json.dumps(identity))
    differing = [key for key in sorted({*saved, *wanted}) if saved.get(key) != wanted.get(key)]
    if differing:
        raise SteerError(
            f"{path} is the checkpoint of another profile: {', '.join(differing)} differ"
            f"{'s' if len(differing) == 1 else ''}; give another folder, or delete this one to start anew"
        )
    return State(folder, identity, tensors)
