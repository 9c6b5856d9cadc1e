"""One fit, run as a program: alone, by a process that will be killed, or by several under `accelerate launch`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from steer._processes import leave_together
from tests.training.helpers import Shift, Slow
from tests.vectors.subjects import subject


def main(out: str, method: str, options: str) -> None:
    """Fit a method to the text model's examples and, from the first process, write its tensors."""
    torch.set_num_threads(1)
    one, given = subject("llama"), json.loads(options)
    made = {"shift": Shift, "slow": Slow}[method](losses=given.pop("losses"), shots=2)
    made.fit(one.model, one.processor, one.examples[: given.pop("examples", 8)], progress=False, **given)
    if PartialState().is_main_process:
        save_file(made.tensors, out)
        Path(out).with_suffix(".json").write_text(
            json.dumps({**made.provenance["training"], "processes": PartialState().num_processes})
        )
    leave_together(one.model)


if __name__ == "__main__":
    main(*sys.argv[1:])
