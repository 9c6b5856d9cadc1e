"""From interventions and recordings to hooks: every address checked, every step built, at most one hook a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from . import _second_stream, _sharding, _spread, _streams, contrast
from ._address import Target, resolve
from ._compile_attention import add_special
from ._filing import Filing, Plan
from ._frame import Frame
from ._generate import around_generate
from ._params import Slot
from ._sharding import Share
from ._step import Measure, Place, RowChoice, Step, Tally, Tap
from ._tracker import Tracker
from .errors import InterventionError, MappingError
from .intervention import Intervention
from .model_map import Attention, ModelMap
from .ops import Append, Around
from .positions import Positions
from .sites import Site

Record = Callable[[Place, Any], None]


class Compiler:
    """Turns interventions and recordings into steps, and files each under its module."""

    def __init__(self, model: nn.Module, model_map: ModelMap, tracker: Tracker, measure: Measure) -> None:
        self.model, self.map, self.tracker, self.measure = model, model_map, tracker, measure
        self._choices: dict[tuple[str, Positions | None], RowChoice] = {}
        self.sharding = _sharding.sharding_of(model)
        self.filing = Filing(model, model_map, tracker, self.sharding)
        self.plan = self.filing.plan
        if self.sharding is not None:
            _sharding.check_map(model_map, self.sharding)

    def add(self, item: Intervention) -> None:
        """Compile one intervention."""
        places: list[tuple[Place, Tally]] = []
        if isinstance(item.op, Around):
            places.append(self._around(item.op))
        elif isinstance(item.op, contrast.Contrast):
            places.append(self._contrast(item.op))
        elif item.site.name in ("key_bias", "kv_prefix", "cache"):
            add_special(self, item, places)
        else:
            needs_frame = bool(getattr(item.op, "needs_frame", False))
            if needs_frame:
                self.plan.towers.add(item.site.tower)
            for target, place, width in self._places(item.site):
                step = self._step(item, target, place, width, needs_frame)
                places.append((place, step.tally))
                self.filing.file(item.site, target, step)
            if isinstance(item.op, Append):
                self._widen(item.site.tower)
        self.plan.tallies.append(places)

    def record(self, site: Site, keep: Record) -> list[Place]:
        """Compile one recording; `keep` gets every tensor of the model's own stream as it passes, with its place."""
        keep = _of_own_stream(keep)
        if site.name == "cache":
            return self._record_cache(site, keep)
        if site.name == "call":
            raise InterventionError("site 'call' has no tensor to record; call the model and look at its output")
        if site.name in ("key_bias", "kv_prefix"):
            raise InterventionError(
                f"site {site.name!r} has no tensor of its own to record; record attention or head_q"
            )
        places = []
        for target, place, _ in self._places(site):
            share = self.share(site, target)
            tap = Tap(place, self.choice(site), keep)
            if share is not None:
                tap = Tap(replace(place, heads=None), tap.choice, _spread.whole_recording(keep, place, share))
            self.filing.file(site, target, tap)
            places.append(place)
        return places

    def choice(self, site: Site) -> RowChoice:
        return self.row_choice(site.positions, site.tower)

    def row_choice(self, positions: Positions | None, tower: str) -> RowChoice:
        if positions is not None and positions.needs_frame:
            self.plan.towers.add(tower)
            self.tracker.wants_images |= positions.kind in ("image", "text")
        key = tower, positions
        if key not in self._choices:
            self._choices[key] = RowChoice(positions, tower, self.tracker)
        return self._choices[key]

    def _places(self, site: Site) -> list[tuple[Target | None, Place, int | None]]:
        """Each place that a site names, with the width of the last dimension there."""
        if site.name == "logits":
            return [(None, Place("logits", "text", -1), None)]
        tower = self.map.tower(site.tower)
        if site.name in ("embeddings", "token_embeddings", "features"):
            return [(None, Place(site.name, site.tower, -1), _streams.width(site, self.map, tower))]
        found: list[tuple[Target | None, Place, int | None]] = []
        for target in resolve(site, self.map):
            mixer = target.attention
            place = Place(site.name, site.tower, target.layer.index, site.attention, target.heads, site.has_heads)
            if site.has_heads:
                assert mixer is not None
                width = mixer.value_dim if site.name in ("head_out", "head_v") else mixer.head_dim
            else:
                width = None
            found.append((target, place, width))
        return found

    def share(self, site: Site, target: Target | None) -> Share | None:
        """Which heads of a target this process holds; None where all, as in every model that is not spread."""
        if self.sharding is None or target is None or target.attention is None or not site.has_heads:
            return None
        return self.sharding.share(target.attention, site.name)

    def key_share(self, mixer: Attention) -> Share | None:
        """Which of a mixer's KV heads this process holds; None where all."""
        return None if self.sharding is None else self.sharding.share(mixer, "head_k")

    def query_share(self, mixer: Attention) -> Share | None:
        """Which of a mixer's query heads this process holds; None where all."""
        return None if self.sharding is None else self.sharding.share(mixer, "head_q")

    def _step(self, item: Intervention, target: Target | None, place: Place, width: int | None, frame: bool) -> Any:
        share, choice = self.share(item.site, target), self.choice(item.site)
        if share is None:
            return Step(place, choice, self._bind(item, target, place, width), item.gate, self.measure, frame)
        if _spread.learns(item.op, item.gate):
            _sharding.refuse_training(self.model, f"training {item.label!r} at the heads")
        if not _spread.apart(item.op) or not _spread.apart(item.gate):
            bound = self._bind(item, target, place, width)
            return _spread.Together(Step(place, choice, bound, item.gate, self.measure, frame), share)
        places = share.places(place.heads)
        if not places:
            return _spread.Away(place, choice)
        bound = self._bind(item, target, place, width, places)
        heads = None if place.heads is None else [place.heads[i] - share.first for i in places]
        return Step(replace(place, heads=heads, asked=place.heads), choice, bound, item.gate, self.measure, frame)

    def _slot(self, target: Target | None, place: Place, width: int | None, here: Sequence[int] | None) -> Slot:
        heads = None
        if place.has_heads and target is not None and target.attention is not None:
            mixer = target.attention
            total = mixer.num_kv_heads if place.site in ("head_k", "head_v") else mixer.num_heads
            heads = len(place.heads) if place.heads is not None else total
        held = None if here is None or heads is None else (heads, here)
        heads = heads if here is None else len(here)
        return Slot(str(place), target.place if target else 0, target.count if target else 1, heads, width, held)

    def _bind(
        self,
        item: Intervention,
        target: Target | None,
        place: Place,
        width: int | None,
        here: Sequence[int] | None = None,
    ) -> Any:
        slot = self._slot(target, place, width, here)
        gate = item.gate.bind(slot) if item.gate is not None else None
        return item.op.bind(slot, gate)  # type: ignore[union-attr]

    def _around(self, op: Around) -> tuple[Place, Tally]:
        place, tally = Place("call", "", -1), Tally()
        self.filing.hook(_streams.around, self.model, op, tally)
        return place, tally

    def _contrast(self, op: contrast.Contrast) -> tuple[Place, Tally]:
        place, tally = Place("call", "", -1), Tally()
        self.plan.towers.add("text")
        self.tracker.wants_images |= op.images
        text = self.map.tower("text")
        if op.hides and any(layer.attention and layer.attention.kind != "softmax" for layer in text.layers):
            raise MappingError(
                "tokens cannot be hidden from this model: some of its layers carry a state past them; a Contrast that "
                "shows other pictures works"
            )

        def frame(logits: torch.Tensor) -> Frame:
            return self.tracker.frame("text", logits.shape[0], logits.shape[1], logits.device)

        running = _second_stream.Running(op, self.model, frame, lambda: tally.count(1))
        self.filing.hook(lambda: self.model.register_forward_pre_hook(running.before, with_kwargs=True))
        self.filing.hook(lambda: self.model.register_forward_hook(running.after))
        self.filing.hook(lambda: SimpleNamespace(remove=around_generate(self.model, running.around)))
        self.filing.hook(lambda: running)
        return place, tally

    def _widen(self, tower: str) -> None:
        """Have the masks of a tower that is given more rows let everything see them."""
        for layer in _streams.growing(self.map, self.map.tower(tower)):
            self.filing.hook(_streams.widen, self.model.get_submodule(layer.path))

    def _record_cache(self, site: Site, keep: Record) -> list[Place]:
        places = []
        for target in resolve(site, self.map):
            assert target.attention is not None
            place = Place("cache", site.tower, target.layer.index, site.attention)

            def read(keys: torch.Tensor, values: torch.Tensor, place: Place = place) -> None:
                keep(place, (keys, values))

            share = self.key_share(target.attention)
            edit = read if share is None else _spread.whole_cache(read, share, target.attention)
            self.filing.cache_edits.setdefault(target.attention.path, []).append((place, Tally(), edit))
            places.append(place)
        return places


def _of_own_stream(keep: Record) -> Record:
    def record(place: Place, tensor: Any) -> None:
        if not contrast.aside():
            keep(place, tensor)

    return record


def compile_plan(
    model: nn.Module,
    model_map: ModelMap,
    tracker: Tracker,
    interventions: Sequence[Intervention],
    recordings: Sequence[tuple[Site, Record]] = (),
    measure: Measure = "first",
) -> Plan:
    """Compile interventions, in order, and then recordings, which see what the interventions made."""
    compiler = Compiler(model, model_map, tracker, measure)
    for item in interventions:
        compiler.add(item)
    for site, keep in recordings:
        compiler.plan.tallies.append([(place, Tally()) for place in compiler.record(site, keep)])
    return compiler.filing.finish()
