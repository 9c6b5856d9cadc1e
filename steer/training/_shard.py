"""A model whose weights are spread over the processes that share a fit."""

from __future__ import annotations

from typing import Any

from .._inspecting import inspect
from .._processes import processes_of, split_by_tensors
from ..errors import SteerError


def shard(model: Any) -> Any:
    """Spread a model's weights over the processes that were launched: fully sharded (FSDP2), a layer at a time.

    Each process keeps its part of every layer's weights, and puts them together while that layer runs. What the model
    computes stays the same, and so do its names, its map and its fingerprint; methods are fitted and attached
    as before. Call it in every process, before anything else is done with the model; it cannot be taken back.

    Args:
        model: any mapped model, on the device of this process. The layers of all towers are spread; what stands beside
            them (embeddings, the head) stays whole in every process.

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
    # A single number, such as a layer's scale, cannot be spread, and need not be.
    scalars = {one for one in model.parameters() if one.ndim == 0}
    # Not the model as a whole: `generate` and two-stream models call parts of it that stand beside the layers.
    for path in dict.fromkeys(layer.path for tower in inspect(model).towers.values() for layer in tower.layers):
        fully_shard(model.get_submodule(path), mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
    # By this transformers knows that processes must go on together until the last one's answer has ended.
    model._is_fsdp_managed_module = True
    return model
