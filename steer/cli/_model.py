"""A model where the user wants it, and which of several processes speaks."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from ..errors import SteerError, unknown_name

DTYPES = ("float32", "bfloat16", "float16")

ModelName = Annotated[str, typer.Option("--model", help="Zoo name (tiny-vlm, tiny-clip), folder or hub id.")]
Device = Annotated[str | None, typer.Option(help="As torch names it; a GPU by default where there is one.")]
Dtype = Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}; by default what the model was saved in.")]


def load(name: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """Model and processor, on a device and in a dtype.

    Raises:
        SteerError: there is no such model, device or dtype.
    """
    import torch

    from .._loading import load_model

    if dtype is not None and dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    where = device or _default_device()
    try:
        torch.empty(1, device=where)
    # torch raises RuntimeError for a name it does not know, AssertionError where it was built without the device.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SteerError(f"there is no device {where!r} here: {str(error).splitlines()[0]}") from error
    model, processor = load_model(name)
    return model.to(device=where, dtype=None if dtype is None else getattr(torch, dtype)), processor


def is_main_process() -> bool:
    """Whether this is the one process, or under `accelerate launch` the first, that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def _default_device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
