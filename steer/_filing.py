"""Steps by the module where they must run, and of each module's steps one hook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import _hooks, _spread, _streams
from ._address import Target
from ._attention import AttentionPlan
from ._compile_attention import in_registry
from ._sharding import Sharding
from ._step import Place, RowChoice, Stage, Tally, Tap
from ._tracker import Tracker
from .errors import MappingError
from .model_map import Attention, ModelMap, Projection
from .sites import Site


@dataclass
class Plan:
    """What one session will install.

    Attributes:
        hooks: functions that register one hook each and return its handle.
        attention: what to do inside the attention of modules that use transformers' registry, by path.
        towers: those whose forwards must be followed.
        tallies: for every intervention (or recording), in the order attached, its places and what happened there.
        prunes: some caches will be pruned, so that each layer needs its own mask.
    """

    hooks: list[Callable[[], Any]] = field(default_factory=list)
    attention: dict[str, AttentionPlan] = field(default_factory=dict)
    towers: set[str] = field(default_factory=set)
    prunes: bool = False
    tallies: list[list[tuple[Place, Tally]]] = field(default_factory=list)


class Filing:
    """Collects steps by module, then turns each module's into one hook."""

    def __init__(self, model: nn.Module, model_map: ModelMap, tracker: Tracker, sharding: Sharding | None) -> None:
        self.model, self.map, self.tracker, self.sharding = model, model_map, tracker, sharding
        self.plan = Plan()
        self.cache_edits: dict[str, list[tuple[Place, Tally, Callable[..., Any]]]] = {}
        self._before: dict[str, list[Stage]] = {}
        self._after: dict[str, list[Stage]] = {}
        self._out: dict[str, tuple[Attention, list[Stage]]] = {}
        self._projected: dict[str, dict[str, list[Stage]]] = {}
        self._mixers: dict[str, Attention] = {}
        self._logits: list[Stage] = []
        self._fields: dict[tuple[str, str], list[Stage]] = {}
        self._keeps: dict[str, AttentionPlan] = {}

    def file(self, site: Site, target: Target | None, step: Stage) -> None:
        """Put a step where its module's hook will be made."""
        if site.name == "logits":
            self._logits.append(step)
            return
        if site.name in ("token_embeddings", "features"):
            where, name = _streams.place(site, self.map)
            (self._fields.setdefault((where, name), []) if name else self._after.setdefault(where, [])).append(step)
            return
        tower = self.map.tower(site.tower)
        if site.name == "embeddings":
            first = tower.layers[0].path
            self._after.setdefault(tower.embeddings, []).append(step) if tower.embeddings else (
                self._before.setdefault(first, []).append(step)
            )
            return
        assert target is not None
        layer, mixer = target.layer, target.attention
        if site.name == "resid_in":
            self._before.setdefault(layer.path, []).append(step)
        elif site.name == "resid_out":
            self._after.setdefault(layer.path, []).append(step)
        elif site.name == "mlp_out":
            self._after.setdefault(_present(layer.mlp_out or layer.mlp, site, layer.path), []).append(step)
        elif site.name == "attn_out":
            path = layer.cross_attn_out if site.attention == "cross" else layer.attn_out
            self._after.setdefault(_present(path or (mixer.path if mixer else None), site, layer.path), []).append(step)
        else:
            assert mixer is not None
            self._file_heads(site, mixer, step)

    def _file_heads(self, site: Site, mixer: Attention, step: Stage) -> None:
        self._mixers[mixer.path] = mixer
        if site.name == "head_out":
            self._out.setdefault(mixer.path, (mixer, []))[1].append(step)
            if step.needs_query or step.needs_lse:
                self._want(mixer, step.needs_lse)
        elif site.name == "attention":
            assert isinstance(step, Tap)
            self.attention_of(in_registry(mixer, step.place)).weights.append(step)
        elif mixer.registry:
            name = {"head_q": "queries", "head_k": "keys", "head_v": "values"}[site.name]
            getattr(self.attention_of(mixer), name).append(step)
        else:
            part = site.name.removeprefix("head_")
            if getattr(mixer, part) is None:
                raise MappingError(
                    f"{site.name!r} cannot be reached in {mixer.path}: it neither uses transformers' attention "
                    f"registry nor has a projection that gives {part}"
                )
            self._projected.setdefault(mixer.path, {}).setdefault(part, []).append(step)

    def attention_of(self, mixer: Attention) -> AttentionPlan:
        if mixer.path not in self.plan.attention:
            made = self.plan.attention[mixer.path] = AttentionPlan()
            if self.sharding is not None:
                _spread.count_heads(made, mixer, self.sharding.here(mixer), RowChoice(None, "text", self.tracker))
        return self.plan.attention[mixer.path]

    def _want(self, mixer: Attention, lse: bool) -> None:
        """Have the query (and the log-sum-exp) of a module's forward kept for its output projection."""
        if mixer.registry:
            plan = self.attention_of(mixer)
            plan.wants_query = True
            plan.wants_lse = plan.wants_lse or lse
        elif lse:
            raise MappingError(
                f"{mixer.path} does not use transformers' attention registry; its log-sum-exp cannot be had"
            )
        elif mixer.q is None:
            raise MappingError(f"the query of {mixer.path} cannot be reached; use a gate with of_query=False")
        else:
            self._projected.setdefault(mixer.path, {}).setdefault("q", [])

    def finish(self) -> Plan:
        """The plan, with one hook per touched module."""
        module = self.model.get_submodule
        for path, steps in self._before.items():
            self.hook(_hooks.before, module(path), steps)
        for path, steps in self._after.items():
            self.hook(_hooks.after, module(path), steps)
        for (path, name), steps in self._fields.items():
            self.hook(_hooks.after_field, module(path), name, steps)
        for mixer, steps in self._out.values():
            self._finish_head_out(mixer, steps)
        for path, parts in self._projected.items():
            self._finish_projections(self._mixers[path], parts)
        for path, edits in self.cache_edits.items():
            self.hook(_hooks.after_attention, module(path), edits)
        if self._logits:
            self._finish_logits()
        return self.plan

    def hook(self, register: Callable[..., Any], *args: Any) -> None:
        self.plan.hooks.append(lambda: register(*args))

    def _finish_head_out(self, mixer: Attention, steps: list[Stage]) -> None:
        assert mixer.out_proj is not None
        assert mixer.num_heads is not None
        share = None if self.sharding is None else self.sharding.share(mixer, "head_out")
        heads = mixer.num_heads if share is None else share.count
        plan = self.plan.attention.get(mixer.path)
        if plan is not None and not plan.wants_query:
            plan = None
        if plan is None and any(s.needs_query for s in steps):
            plan = self._kept(mixer)
        if plan is not None:
            self.hook(_hooks.forget_query, self.model.get_submodule(mixer.path), plan)
        self.hook(_hooks.before_out_proj, self.model.get_submodule(mixer.out_proj), steps, heads, plan)

    def _kept(self, mixer: Attention) -> AttentionPlan:
        """Where the query of a module outside the registry is kept between its projection and its output."""
        return self._keeps.setdefault(mixer.path, AttentionPlan())

    def _finish_projections(self, mixer: Attention, parts: dict[str, list[Stage]]) -> None:
        mixer = mixer if self.sharding is None else self.sharding.here(mixer)
        for part, steps in parts.items():
            projection: Projection = getattr(mixer, part)
            heads = mixer.num_heads if part == "q" else mixer.num_kv_heads
            width = mixer.value_dim if part == "v" else mixer.head_dim
            keep = self._keeps.get(mixer.path) if part == "q" else None
            module = self.model.get_submodule(projection.path)
            self.hook(_hooks.after_projection, module, projection, heads, width, steps, keep)

    def _finish_logits(self) -> None:
        from transformers import GenerationMixin

        if self.sharding is not None and self.map.logits and self.sharding.gives_part(self.map.logits):
            raise MappingError(f"{self.map.logits} gives each process its part of the scores; no process has them all")
        generate = getattr(type(self.model), "generate", GenerationMixin.generate)
        own = generate is not GenerationMixin.generate
        if own and self.map.logits is not None:
            self.hook(_hooks.after, self.model.get_submodule(self.map.logits), self._logits)
        else:
            self.hook(_hooks.after_model, self.model, self._logits)


def _present(path: str | None, site: Site, layer: str) -> str:
    if path is None:
        raise MappingError(f"{site.name!r} does not exist in {layer}: the map has no such branch there")
    return path
