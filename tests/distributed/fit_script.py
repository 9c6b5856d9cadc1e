"""Fits that two processes share, one after the other, run as a program under `accelerate launch`; or alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save_file

import steer
from steer._processes import leave_together
from steer.training import shard

HOW = {"lr": 0.02, "batch_size": 3, "progress": False, "seed": 1}
SMALL = {"context": 2}


def examples() -> list[steer.Example]:
    """An odd number, so that shares differ in size."""
    return steer.zoo.examples("colour", "demo", n=9)


def live(model: Any, processor: Any) -> steer.Method:
    """By a teacher and the answers, early stopping by held-out examples."""
    return steer.create("live", shots=2).fit(model, processor, examples(), max_steps=4, **HOW)


def mimic(model: Any, processor: Any) -> steer.Method:
    """By hidden states, at the heads."""
    return steer.create("mimic", shots=2).fit(model, processor, examples(), max_steps=3, dev=[], **HOW)


def coop(model: Any, processor: Any) -> steer.Method:
    """From labelled pictures."""
    pictures = steer.zoo.labelled("food", "train", per_class=1)[:5]
    return steer.create("coop", **SMALL).fit(model, processor, pictures, epochs=2, **HOW)


FITS = {"live": live, "mimic": mimic, "coop": coop}
MODELS = {"live": "tiny-vlm", "mimic": "tiny-vlm", "coop": "tiny-clip"}
# Weights cannot be gathered again: these come last.
SHARDED = ("live", "mimic", "coop")


def main(folder: str) -> None:
    """Write the tensors of every fit, as each process has them; whole weights first, then spread ones."""
    torch.set_num_threads(1)
    loaded = {name: steer.zoo.load(name) for name in set(MODELS.values())}
    for kind, names in (("whole", FITS), ("spread", SHARDED)):
        if kind == "spread":
            for model, _ in loaded.values():
                before = steer.inspect(model).fingerprint()
                shard(model)
                assert steer.inspect(model).fingerprint() == before
                sizes = [(getattr(one, "_local_tensor", one).numel(), one.numel()) for one in model.parameters()]
                assert sum(mine for mine, _ in sizes) < 0.8 * sum(whole for _, whole in sizes)
        for name in names:
            made = FITS[name](*loaded[MODELS[name]])
            file = Path(folder) / f"{name}-{kind}-{PartialState().process_index}.safetensors"
            save_file({key: value.contiguous() for key, value in made.tensors.items()}, file)
    leave_together(model)


if __name__ == "__main__":
    main(*sys.argv[1:])
