"""Fits of every kind of prompt, run as a program: alone, or by two processes under `accelerate launch`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

import steer

from .models import CLASSES, build, pictures

DEEP = {"text_depth": 3, "vision_depth": 3}
KINDS = {"coop": {}, "cocoop": {}, "maple": DEEP, "kgcoop": {}, "promptsrc": DEEP, "prograd": {}}


def main(path: Path) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    model, processor = build("clip")
    data = [(picture, CLASSES[index % 4]) for index, picture in enumerate(pictures(11))]
    made: dict[str, torch.Tensor] = {}
    for kind, config in KINDS.items():
        method = steer.create(kind, classes=CLASSES, **config)
        method.fit(model, processor, data, epochs=3, batch_size=4, lr=0.05, progress=False)
        made |= {f"{kind}.{name}": value.detach() for name, value in method.tensors.items() if name != "slots"}
    if state.is_main_process:
        save_file(made, path)
        path.with_suffix(".json").write_text(json.dumps({"processes": state.num_processes}))
    # Nobody leaves while another still talks to it; and none through the interpreter's end, where gloo's threads
    # now and then abort a process that is done.
    state.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
