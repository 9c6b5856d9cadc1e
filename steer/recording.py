"""`steer.record`: keep the tensors that pass a site, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from . import _installed
from ._compile import compile_plan
from ._sharding import refuse_training
from ._step import Place
from ._tracker import Tracker
from .errors import InterventionError, SessionError, unknown_name
from .model_map import ModelMap
from .session import map_of
from .sites import Site


class Key(NamedTuple):
    """The address of one recording; layer -1 where the site has no layer."""

    site: str
    layer: int = -1
    tower: str = "text"
    attention: str = "self"


class _Stop(BaseException):
    """Ends a forward once everything asked for was kept; a BaseException, so that no model code swallows it."""

    def __init__(self, owner: Recording) -> None:
        self.owner = owner


class Recording(Mapping[Key, Any]):
    """The tensors kept by `steer.record`, by (site, layer, tower, attention); trailing parts may be left out.

    `acts["head_out", 3]` is the tensor of the latest forward; `acts.steps("head_out", 3)` is a list with one tensor for
    each forward, such as the steps of `generate`.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: tuple[Site, ...],
        model_map: ModelMap,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        stop: bool,
        prompt_length: int | None,
        grad: bool = False,
    ) -> None:
        self._model, self._sites, self._map = model, sites, model_map
        self._device, self._dtype, self._stop, self._prompt_length = device, dtype, stop, prompt_length
        self._grad = grad
        self._kept: dict[Key, list[Any]] = {}
        self._waiting: set[Key] = set()
        self._asked: set[Key] = set()
        self._undo: ExitStack | None = None

    def __enter__(self) -> Self:
        if self._undo is not None:
            raise SessionError("this recording is open already; use steer.record again for a second one")
        if self._grad and any(site.has_heads or site.name == "cache" for site in self._sites):
            refuse_training(self._model, "grad=True records the heads")
        with ExitStack() as undo:
            installed = _installed.enter(self._model)
            undo.callback(_installed.leave, self._model)
            tracker = Tracker(self._model, self._map, self._prompt_length)
            plan = compile_plan(self._model, self._map, tracker, [], [(site, self._keep) for site in self._sites])
            self._asked = {_key(place) for places in plan.tallies for place, _ in places}
            self._waiting = set(self._asked)
            installed.attach(self._model, plan, undo)
            # After the hooks on the logits, which still ask for rows: the tracker forgets them when the model returns.
            if plan.towers:
                installed.follow(self._model, tracker, plan.towers, undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._undo is None:
            raise SessionError("this recording is not open")
        undo, self._undo = self._undo, None
        undo.close()
        return isinstance(error, _Stop) and error.owner is self

    def __getitem__(self, key: object) -> Any:
        """The tensor of the latest forward, in the site's layout (at `cache` a pair of keys and values).

        Raises:
            UnknownNameError: nothing of that address was recorded.
        """
        return self.steps(*(key if isinstance(key, tuple) else (key,)))[-1]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def steps(self, site: str, layer: int = -1, tower: str = "text", attention: str = "self") -> list[Any]:
        """One tensor for each forward that passed the site, in order."""
        key = Key(site, layer, tower, attention)
        if key not in self._kept:
            hint = "" if self._kept else "the model was not called inside `with steer.record(...)`"
            raise unknown_name("recording", tuple(key), [tuple(k) for k in self._kept], hint)
        return self._kept[key]

    def clear(self) -> None:
        """Forget what was kept; the recording goes on."""
        self._kept.clear()
        self._waiting = set(self._asked)

    def _keep(self, place: Place, value: Any) -> None:
        key = _key(place)
        kept = tuple(self._copy(t, place) for t in value) if isinstance(value, tuple) else self._copy(value, place)
        self._kept.setdefault(key, []).append(kept)
        self._waiting.discard(key)
        if self._stop and not self._waiting:
            raise _Stop(self)

    def _copy(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        if not self._grad:
            x = x.detach()
        if place.site in ("head_q", "head_k", "head_v", "attention") and x.ndim == 4:
            x = x.transpose(1, 2)
        return x.to(device=self._device or x.device, dtype=self._dtype or x.dtype, copy=True)


def _key(place: Place) -> Key:
    return Key(place.site, place.layer, place.tower, place.attention)


def record(
    model: nn.Module,
    *sites: Site,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    stop: bool = False,
    prompt_length: int | None = None,
    grad: bool = False,
    model_map: ModelMap | None = None,
) -> Recording:
    """Keep copies of the tensors that pass some sites.

    Args:
        model: any mapped model.
        sites: from `steer.sites`; with `heads` only those heads are kept, with `positions` only those rows (a slice of
            rows keeps the layout; rows chosen by a mask come as (rows, ...)).
        device: where to keep them; None for where they are.
        dtype: in which dtype; None for as they are.
        stop: end the forward as soon as every site has been passed once; the rest of the `with` block is skipped.
        prompt_length: as in `steer.attach`.
        grad: keep what was recorded part of the graph, so that a loss on it trains what came before.
        model_map: the result of `steer.inspect`, if you have it.

    Returns:
        A Recording, to be entered with `with`; read it during or after the block.
    """
    for site in sites:
        if not isinstance(site, Site):
            raise InterventionError(f"steer.record takes sites from steer.sites, got {site!r}")
    if not sites:
        raise InterventionError("steer.record needs at least one site, e.g. steer.sites.resid_out()")
    mapped = model_map if model_map is not None else map_of(model)
    return Recording(model, sites, mapped, device, dtype, stop, prompt_length, grad)
