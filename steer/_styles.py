"""The style by which tensor parallelism spreads a module.

transformers replaces the forward of each module of its plan by one that holds the style and the processes it is for;
nothing on a module says so otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .errors import MappingError


@dataclass(frozen=True)
class Layout:
    """How a module of the plan takes and gives its features: whether each process has its part of them only."""

    takes_part: bool
    gives_part: bool
    mesh: Any


def style_of(module: nn.Module) -> tuple[Any, Any]:
    """The style of a module of the plan, and its mesh, from the forward that replaced the module's own."""
    from torch.distributed.device_mesh import DeviceMesh
    from transformers.distributed.tensor_parallel import TensorParallelLayer

    forward = module.__dict__.get("forward")
    style = mesh = None
    for cell in getattr(forward, "__closure__", None) or ():
        held = cell.cell_contents
        style = held if isinstance(held, TensorParallelLayer) else style
        mesh = held if isinstance(held, DeviceMesh) else mesh
    return style, mesh


def layout_of(module: nn.Module, path: str) -> Layout | None:
    """How a linear layer takes and gives its features; None where every process has them all.

    Raises:
        MappingError: it is spread in a way that is not known here.
    """
    from torch.distributed.tensor import DTensor
    from transformers.distributed import tensor_parallel as styles

    style, mesh = style_of(module)
    if style is None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, DTensor) and "tp" in (weight.device_mesh.mesh_dim_names or ()):
            raise MappingError(f"{path} is spread over processes, but not by transformers' plan; load with tp_plan")
        return None
    if isinstance(style, styles.ColwiseParallel) and style.use_local_output:
        return Layout(False, _features(style.output_layouts), mesh)
    if isinstance(style, styles.RowwiseParallel) and style.use_local_output:
        return Layout(_features(style.input_layouts), False, mesh)
    if type(style) in (styles.TensorParallelLayer, styles.ReplicatedWithGradAllReduce, styles.AllReduceParallel):
        return None
    raise MappingError(f"{path} is spread as {type(style).__name__}, which steer does not know at an attention")


def _features(placement: Any) -> bool:
    return bool(placement.is_shard())


def along_tokens(style: Any) -> bool:
    """Whether a style takes or gives rows of a part of the tokens: sharded, and not along the last dimension."""
    found = (getattr(style, name, None) for name in ("input_layouts", "output_layouts"))
    flat = (one for layouts in found for one in (layouts if isinstance(layouts, tuple) else (layouts,)))
    return any(getattr(one, "dim", -1) not in (-1, None) for one in flat)


def stages_of(model: nn.Module) -> int:
    """Over how many processes its layers are spread, one after the other."""
    mesh = getattr(model, "_device_mesh", None)
    names = getattr(mesh, "mesh_dim_names", None) or ()
    return int(mesh.shape[names.index("pp")]) if "pp" in names else 1  # type: ignore[union-attr]
