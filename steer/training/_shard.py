"""A model whose weights are spread over the processes that share a fit."""

from __future__ import annotations

from typing import Any

from .._inspecting import inspect
from .._processes import processes_of, split_by_tensors
from ..errors import SteerError


def shard(model: Any) -> Any:
    """Spread a model's weights over the processes that were launched: fully sharded (FSDP2), a layer at a time.

    Each process keeps its part of every weight, and puts the weights of a layer together while that layer runs. What
    the model computes stays the same, and so do its names, its map and its fingerprint; methods are fitted and attached
    as before. Call it in every process, before anything else is done with the model; it cannot be taken back.

    Args:
        model: any mapped model, on the device of this process. Layers that the map finds are spread one by one, the
            rest as a whole.

    Returns:
        The same model; of one process alone, as it was.

    Raises:
        SteerError: the model is split by tensors (tp_plan) already.
    """
    state = processes_of(model)
    if split_by_tensors(model):
        raise SteerError("the model is split by tensors (tp_plan) already; load it without, to spread its weights")
    if state.num_processes == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (state.num_processes,))
    paths = dict.fromkeys(layer.path for tower in inspect(model).towers.values() for layer in tower.layers)
    for path in paths:
        fully_shard(model.get_submodule(path), mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
