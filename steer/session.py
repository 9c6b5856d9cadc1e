"""`steer.attach`: interventions on a model for as long as a `with` block lasts."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import nn

from . import _installed, report
from ._compile import compile_plan
from ._filing import Plan
from ._inspecting import inspect
from ._plugins import manager
from ._tracker import Tracker
from .errors import InterventionError, NeverFiredError, SessionError
from .intervention import Intervention
from .model_map import ModelMap
from .registry import use_kernels

if TYPE_CHECKING:
    from .method import Method
    from .report import Report

_open: weakref.WeakKeyDictionary[nn.Module, list[Session]] = weakref.WeakKeyDictionary()
_maps: weakref.WeakKeyDictionary[nn.Module, ModelMap] = weakref.WeakKeyDictionary()


def map_of(model: nn.Module) -> ModelMap:
    """The model's map, made once for as long as the model lives."""
    if not isinstance(model, nn.Module):
        raise InterventionError(f"the first argument must be a model (a torch.nn.Module), got {type(model).__name__}")
    if model not in _maps:
        _maps[model] = inspect(model)
    return _maps[model]


def open_sessions(model: nn.Module) -> tuple[Session, ...]:
    """The sessions that are open on a model, in the order in which they were entered."""
    return tuple(_open.get(model, ()))


class Session:
    """Interventions on one model: installed by `with`, gone after it, whatever happened inside.

    Build it with `steer.attach`. Sessions nest; the order is the order in which they were entered.
    """

    def __init__(
        self,
        model: nn.Module,
        interventions: list[Intervention],
        labels: list[str],
        model_map: ModelMap,
        strict: bool = True,
        measure: Literal["first", "all", "none"] = "first",
        prompt_length: int | None = None,
    ) -> None:
        self.model, self.model_map = model, model_map
        self.interventions = tuple(interventions)
        self._labels = labels
        self._strict, self._measure, self._prompt_length = strict, measure, prompt_length
        self._undo: ExitStack | None = None
        self._plan = Plan()

    def __enter__(self) -> Self:
        """Compile and install.

        Raises:
            SessionError: it is open already, or another thread has a session on this model.
            InterventionError, MappingError, UnknownNameError: something does not fit the model; nothing is installed.
        """
        if self._undo is not None:
            raise SessionError("this session is open already; use steer.attach again for a second one")
        use_kernels()
        with ExitStack() as undo:
            installed = _installed.enter(self.model)
            undo.callback(_installed.leave, self.model)
            tracker = Tracker(self.model, self.model_map, self._prompt_length)
            self._plan = self._compile(tracker)
            if self._plan.prunes:
                # made of sessions itself, so it cannot be imported before them
                from .memory import masks

                undo.enter_context(masks(self.model))
            installed.attach(self.model, self._plan, undo)
            # After the hooks on the logits, which still ask for rows: the tracker forgets them when the model returns.
            if self._plan.towers:
                installed.follow(self.model, tracker, self._plan.towers, undo)
            manager().hook.steer_session_enter(session=self)
            self._undo = undo.pop_all()
        _open.setdefault(self.model, []).append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the model.

        Raises:
            NeverFiredError: some intervention touched nothing (`strict=True`), and no other error is on its way.
        """
        if self._undo is None:
            raise SessionError("this session is not open")
        undo, self._undo = self._undo, None
        _open[self.model].remove(self)
        undo.close()
        made = self.report()
        manager().hook.steer_session_exit(session=self, report=made)
        silent = made.never_fired()
        if kind is None and self._strict and silent:
            raise NeverFiredError(
                f"never fired: {', '.join(silent)}. The model was not called inside the session, or the layers, "
                "tower or positions chosen were not reached; strict=False allows this"
            )

    def report(self) -> Report:
        """What has happened so far, or happened in all once the session is closed."""
        return report.build(self._labels, self._plan.tallies)

    def _compile(self, tracker: Tracker) -> Plan:
        return compile_plan(self.model, self.model_map, tracker, self.interventions, measure=self._measure)


def attach(
    model: nn.Module,
    *items: Intervention | Method | Iterable[Intervention],
    strict: bool = True,
    measure: Literal["first", "all", "none"] = "first",
    prompt_length: int | None = None,
    model_map: ModelMap | None = None,
) -> Session:
    """Steer a model for the length of a `with` block.

    Args:
        model: any mapped model, on any device, in any dtype.
        items: interventions, methods, or lists of interventions, applied in this order.
        strict: raise at the end if some intervention never touched a tensor.
        measure: when to measure how far tensors move for the report: in the first forward that touches them, in all, or
            never. Rows are counted always.
        prompt_length: how many slots are prompt, where you step through a sequence yourself, without `generate`.
        model_map: the result of `steer.inspect`, if you have it.

    Returns:
        A Session, to be entered with `with`.

    Raises:
        InterventionError: an item is neither an intervention nor a method.
    """
    if measure not in ("first", "all", "none"):
        raise InterventionError(f'measure must be "first", "all" or "none", got {measure!r}')
    mapped = model_map if model_map is not None else map_of(model)
    interventions: list[Intervention] = []
    labels: list[str] = []
    for item in items:
        made, prefix = _expand(item, mapped)
        interventions += made
        labels += [prefix + one.label for one in made]
    return Session(model, interventions, labels, mapped, strict, measure, prompt_length)


def _expand(item: Any, model_map: ModelMap) -> tuple[list[Intervention], str]:
    if isinstance(item, Intervention):
        return [item], ""
    if hasattr(item, "interventions") and not isinstance(item, type):
        if hasattr(item, "check_fits"):
            item.check_fits(model_map)
        return list(item.interventions(model_map)), f"{getattr(item, 'name', type(item).__name__)}: "
    if isinstance(item, Iterable):
        made = list(item)
        if all(isinstance(one, Intervention) for one in made):
            return made, ""
    raise InterventionError(f"steer.attach takes interventions and methods, got {type(item).__name__}: {item!r:.80}")
