"""Where a fit stands, in one file that is there whole or not at all: safetensors, with the plain facts as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import FileFormatError, SteerError
from ..files import write_whole

NAME = "fit.safetensors"
# What the optimisers know of a tensor: AdamW's two, and SGD's one.
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")


@dataclass
class Progress:
    """How far a fit has come.

    Attributes:
        step: steps done.
        best: lowest loss on `dev` so far, None before the first look.
        worse: looks in a row that were not better.
        seconds: spent, over all runs.
        history: one entry for each look: step, mean losses since the last, and the loss on `dev`.
        sums: of every loss, over the steps since the last look.
        stopped: it ended early.
    """

    step: int = 0
    best: float | None = None
    worse: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    stopped: bool = False


def write(
    folder: Path,
    identity: dict[str, Any],
    progress: Progress,
    learned: dict[str, torch.Tensor],
    best: dict[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write the checkpoint of a fit; `identity` says which fit it is."""
    tensors = {f"now.{name}": value for name, value in learned.items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for name, value in learned.items():
        known = optimiser.state[value]
        tensors |= {f"{kind}.{name}": known[kind] for kind in MOMENTS if known.get(kind) is not None}
    facts = {"identity": json.dumps(identity, sort_keys=True), "progress": json.dumps(asdict(progress))}
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / NAME, save(whole, metadata=facts))


def read(
    folder: Path, identity: dict[str, Any], learned: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer
) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """Put a fit back to where its checkpoint was, or return None if there is none.

    Returns:
        How far it had come, and the best tensors so far.

    Raises:
        SteerError: the folder holds another fit.
        FileFormatError: the file is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        saved, progress = json.loads(facts["identity"]), _progress(json.loads(facts["progress"]))
        _same(path, saved, identity)
        kinds = [kind for kind in MOMENTS if any(key.startswith(f"{kind}.") for key in tensors)]
        moments = {name: {kind: tensors[f"{kind}.{name}"] for kind in kinds} for name in learned}
        with torch.no_grad():
            for name, value in learned.items():
                value.copy_(tensors[f"now.{name}"].view(value.shape))
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise FileFormatError(f"{path} is damaged: {error}; delete it to fit from the start") from error
    for name, value in learned.items():
        state = {kind: moment.to(value.device) for kind, moment in moments[name].items()}
        optimiser.state[value] = {"step": torch.tensor(float(progress.step)), **state}
    best = {key.removeprefix("best."): value for key, value in tensors.items() if key.startswith("best.")}
    return progress, best


def _progress(facts: Any) -> Progress:
    """As it was written.

    Raises:
        TypeError, ValueError: a value is of another kind, or counts backwards.
    """
    made = Progress(**facts)
    number = float | int
    kinds: dict[str, Any] = {"step": int, "worse": int, "seconds": number, "best": number | None}
    kinds |= {"history": list, "sums": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(getattr(made, name), kind)]
    if wrong or min(made.step, made.worse, made.seconds) < 0:
        raise ValueError(f"how far it came is not readable: {', '.join(wrong) or 'a count is negative'}")
    return made


def _same(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    differing = [key for key in sorted({*saved, *wanted}) if saved.get(key) != wanted.get(key)]
    if differing:
        raise SteerError(
            f"{path} is the checkpoint of another fit: {', '.join(differing)} differ"
            f"{'s' if len(differing) == 1 else ''}; give another folder, or delete this one to start anew"
        )
