"""A model where the user wants it, and which of several processes speaks."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from ..errors import SteerError, unknown_name
from ._complete import models, offer

DTYPES = ("float32", "bfloat16", "float16")
AUTO = "auto"

_MODEL: dict[str, Any] = {
    "metavar": "MODEL",
    "help": "The model: a zoo name (tiny-vlm, tiny-clip, tiny-scenes), a folder or a hub id.",
    "autocompletion": offer(models),
}
ModelArgument = Annotated[str, typer.Argument(**_MODEL)]
ModelName = Annotated[str, typer.Option("--model", **_MODEL)]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where it runs: cpu, cuda:1, ..., or auto for device_map='auto'; by default a GPU where there is one.",
        autocompletion=offer(lambda: ("cpu", "cuda", AUTO)),
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help=f"What it computes in: {', '.join(DTYPES)}; by default what the model was saved in.",
        autocompletion=offer(lambda: DTYPES),
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Prompts or pictures in one forward.")]


def load(name: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """Model and processor, on a device and in a dtype.

    Args:
        name: zoo name, folder or hub id.
        device: as torch names it; "auto" leaves it to transformers' `device_map="auto"`, which may spread the model
            over several devices; None for a GPU where there is one.
        dtype: one of `DTYPES`; None for what the model was saved in.

    Raises:
        SteerError: there is no such model, device or dtype.
    """
    import torch

    from .._loading import load_model

    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    wanted = None if dtype is None else getattr(torch, dtype)
    if device == AUTO:
        return load_model(name, device_map=AUTO, dtype=wanted)
    where = device or _default_device()
    try:
        torch.empty(1, device=where)
    # torch raises RuntimeError for a name it does not know, AssertionError where it was built without the device.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SteerError(f"there is no device {where!r} here: {str(error).splitlines()[0]}") from error
    if torch.device(where).type == "meta":
        raise SteerError("nothing can be run on the device 'meta', which keeps no numbers; `steer inspect` needs none")
    model, processor = load_model(name)
    return model.to(device=where, dtype=wanted), processor


def is_main_process() -> bool:
    """Whether this is the one process, or under `accelerate launch` the first, that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def shared_weights() -> bool:
    """Whether `accelerate launch` was told that the processes share the model's weights (FSDP).

    Raises:
        SteerError: they were to share them through DeepSpeed, which only a script of one's own can.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise SteerError(
            "the command line does not start DeepSpeed; spread the weights with docs/configs/fsdp2.yaml, or fit in a "
            "script of your own (docs/distributed.md)"
        )
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _default_device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
