"""Models whose weights are spread over processes by tensor parallelism: which heads of an attention are here.

Everything is found once, when a session starts, from the styles of the modules of the plan (`_styles.py`) and the sizes
that those modules still give as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ._styles import Layout, along_tokens, layout_of, stages_of, style_of
from .errors import InterventionError, MappingError
from .model_map import Attention, ModelMap, Projection

_OF_KEYS = ("head_k", "head_v", "kv_prefix", "cache")


@dataclass(frozen=True)
class Share:
    """The heads of one attention that this process holds: `count` of `total`, from `first` on; all hold equally many.

    Attributes:
        group: the processes that hold the others.
    """

    first: int
    count: int
    total: int
    group: Any

    def places(self, heads: Sequence[int] | None) -> list[int]:
        """Which of the chosen heads (None: all) are here, as places among those chosen."""
        chosen = range(self.total) if heads is None else heads
        return [place for place, head in enumerate(chosen) if self.first <= head < self.first + self.count]

    def whole(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """All heads, from this process's along `axis`. Every process of the group must come here."""
        from torch.distributed import _functional_collectives as collectives

        moved = x.movedim(axis, 0).contiguous()
        if moved.requires_grad:
            gathered = collectives.wait_tensor(collectives.all_gather_tensor_autograd(moved, 0, self.group))
        else:
            gathered = moved.new_empty(self.total, *moved.shape[1:])
            torch.distributed.all_gather_into_tensor(gathered, moved, group=self.group)
        return gathered.movedim(0, axis)

    def own(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        """This process's heads, from all of them along `axis`."""
        return x.narrow(axis, self.first, self.count)

    def most(self, number: int, device: torch.device) -> int:
        """The largest of the processes' numbers."""
        made = torch.tensor([number], device=device)
        torch.distributed.all_reduce(made, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return int(made)


class Sharding:
    """What of a model is spread, asked module by module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def share(self, mixer: Attention, site: str) -> Share | None:
        """Which heads of a mixer are here at a site; None where all are.

        Raises:
            MappingError: they are spread in a way that is not known here; it names the module.
        """
        if site == "head_out":
            return self._of_out(mixer)
        if site in _OF_KEYS:
            return self._of_keys(mixer)
        return self._of_projection(mixer, mixer.q, mixer.num_heads) if mixer.q else self._of_out(mixer)

    def here(self, mixer: Attention) -> Attention:
        """The mixer with as many heads as this process holds."""
        queries, keys = self.share(mixer, "head_q"), self.share(mixer, "head_k")
        return replace(
            mixer,
            num_heads=mixer.num_heads if queries is None else queries.count,
            num_kv_heads=mixer.num_kv_heads if keys is None else keys.count,
        )

    def gives_part(self, path: str) -> bool:
        """Whether a module's output has this process's part of the features only."""
        layout = self._layout(path)
        return layout is not None and layout.gives_part

    def _of_out(self, mixer: Attention) -> Share | None:
        layout = None if mixer.out_proj is None else self._layout(mixer.out_proj)
        if layout is None or not layout.takes_part:
            return None
        assert mixer.out_proj is not None
        features = self.model.get_submodule(mixer.out_proj).in_features
        return _share(layout, int(features), mixer.num_heads, mixer.out_proj)  # type: ignore[arg-type]

    def _of_keys(self, mixer: Attention) -> Share | None:
        heads = mixer.num_kv_heads
        found = {self._of_projection(mixer, part, heads) for part in (mixer.k, mixer.v) if part is not None}
        if len(found) > 1:
            raise MappingError(
                f"{mixer.path}: its keys and its values are spread differently; steer knows no such plan"
            )
        if found:
            return found.pop()
        # Made by several layers, or shared with another module: then they follow the queries.
        out = self._of_out(mixer)
        return None if out is None or heads is None else _part_of(out, heads, mixer.path)

    def _of_projection(self, mixer: Attention, part: Projection, heads: int | None) -> Share | None:
        layout = self._layout(part.path)
        if layout is None or not layout.gives_part:
            return None
        if not part.pattern.startswith("(h"):
            raise MappingError(f"{part.path} is fused as {part.pattern!r} and spread; a part of it is no whole heads")
        return _share(layout, int(self.model.get_submodule(part.path).out_features), heads, part.path)  # type: ignore

    def _layout(self, path: str) -> Layout | None:
        return layout_of(self.model.get_submodule(path), path)


def sharding_of(model: nn.Module) -> Sharding | None:
    """What of the model is spread over processes by tensor parallelism, or None where nothing is.

    Raises:
        MappingError: a part of the model is spread in a way in which no site is what it is in one process.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    try:
        from transformers.distributed.tensor_parallel import SequenceParallel
    except ImportError:
        # Before it was there transformers spread models in another way. Several processes may each have a whole one.
        from ._processes import split_by_tensors

        if split_by_tensors(model):
            raise MappingError(
                f"this {type(model).__name__} is spread by tensor parallelism, which steer reads from transformers "
                "5.23 on; a newer transformers, or device_map, will do"
            ) from None
        return None
    spread = False
    for path, module in model.named_modules():
        style, _ = style_of(module)
        if style is None:
            continue
        spread = True
        if isinstance(style, SequenceParallel) or along_tokens(style):
            raise MappingError(
                f"{path} is spread along the tokens (sequence parallel), so no process has whole rows; "
                "load the model with a plan that spreads features only"
            )
    if stages_of(model) > 1:
        raise MappingError(
            f"this {type(model).__name__} is spread over processes layer by layer (pipeline parallel), so no process "
            "runs them all; use tensor parallelism or device_map"
        )
    return Sharding(model) if spread else None


def projected(model: nn.Module, mixer: Attention, results: torch.Tensor) -> torch.Tensor:
    """What an attention's output projection makes of results of all heads: (..., H, d_v) to (..., D), bias included.

    The projection is called, never read: it may be quantised, offloaded, adapted, or spread.
    """
    assert mixer.out_proj is not None
    sharding = sharding_of(model)
    share = None if sharding is None else sharding.share(mixer, "head_out")
    here = results if share is None else share.own(results, -2)
    made: torch.Tensor = model.get_submodule(mixer.out_proj)(here.flatten(-2))
    return made


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether a tensor has its numbers in several processes."""
    return hasattr(tensor, "placements")


def refuse_training(model: nn.Module, what: str) -> None:
    """Raise where a model is spread: gradients of the heads elsewhere never come here.

    Raises:
        InterventionError: it is.
    """
    if sharding_of(model) is not None:
        raise InterventionError(
            f"{what} of a model that is spread by tensor parallelism (tp_plan): this process gets no gradient of the "
            "heads that others hold; train on a model that is whole, save the method, and attach it here"
        )


def local_map(model: nn.Module, mixers: dict[int, Attention]) -> dict[int, Attention]:
    """Attentions by layer, each with as many heads as this process holds."""
    found = sharding_of(model)
    return mixers if found is None else {index: found.here(mixer) for index, mixer in mixers.items()}


def check_map(model_map: ModelMap, sharding: Sharding) -> None:
    """Raise where queries are spread and keys are not: each process would pair its queries with the wrong keys.

    Raises:
        MappingError: it names the module.
    """
    for _, _, mixer in model_map.attentions():
        if mixer.kind != "softmax" or mixer.num_heads is None:
            continue
        queries, keys = sharding.share(mixer, "head_q"), sharding.share(mixer, "head_k")
        if queries is not None and keys is None and (mixer.num_kv_heads or 0) > 1:
            raise MappingError(
                f"{mixer.path}: its queries are spread and its {mixer.num_kv_heads} key-value heads are not, so that "
                "queries and keys here do not belong together; spread both, or neither"
            )


def _share(layout: Layout, features: int, heads: int | None, path: str) -> Share:
    mesh = layout.mesh
    size, rank = mesh.size(), mesh.get_local_rank()
    if heads is None or features % heads or heads % size:
        raise MappingError(
            f"{path}: {heads} heads cannot be spread evenly over {size} processes; use as many processes as divide them"
        )
    return Share(rank * (heads // size), heads // size, heads, mesh.get_group())


def _part_of(out: Share, heads: int, path: str) -> Share:
    size = out.total // out.count
    if heads % size:
        raise MappingError(f"{path}: {heads} key-value heads cannot be spread evenly over {size} processes")
    return Share(out.first // out.count * (heads // size), heads // size, heads, out.group)
