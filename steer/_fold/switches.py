"""Which fields of a config give modules a bias: found by building the model with one field changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InterventionError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Switch:
    """One field of a config, or of a config inside it.

    Attributes:
        inside: attribute names that lead from the model's config to the one with the field.
        field: its name.
        value: what gives the bias, true for most.
    """

    inside: tuple[str, ...]
    field: str
    value: bool

    def __str__(self) -> str:
        return ".".join((*self.inside, self.field))

    def config_of(self, config: PretrainedConfig) -> PretrainedConfig:
        """The config that has the field."""
        for name in self.inside:
            config = getattr(config, name)
        return config

    def set(self, config: PretrainedConfig) -> None:
        """Change a model's config."""
        setattr(self.config_of(config), self.field, self.value)


@dataclass(frozen=True)
class Switched:
    """Switches, and the parameters that a model of the changed config has more, by name."""

    switches: tuple[Switch, ...] = ()
    new: Shapes | None = None


def candidates(config: PretrainedConfig, inside: tuple[str, ...] = ()) -> Iterator[Switch]:
    """Every true-or-false field with `bias` in its name, turned around."""
    from transformers import PretrainedConfig

    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from candidates(value, (*inside, name))
        elif isinstance(value, bool) and "bias" in name:
            yield Switch(inside, name, not value)


def find(model_class: Any, config: PretrainedConfig, paths: Mapping[str, str]) -> Switched:
    """The fewest switches under which every module of `paths` has a bias.

    Args:
        model_class: builds from a config; nothing is built but on the meta device.
        config: the model's; not changed.
        paths: of modules that have none, each with the name of an intervention that needs it.

    Raises:
        InterventionError: no switch gives one to some module; the message names it and those that were tried.
    """
    if not paths:
        return Switched()
    plain = _built(model_class, config, ())
    if plain is None:
        raise InterventionError(
            f"{model_class.__name__} cannot be built from its config, so no bias can be added to it"
        )
    tried = list(candidates(config))
    gains = {switch: gained for switch in tried if (gained := _gained(model_class, config, plain, (switch,)))}
    chosen: list[Switch] = []
    missing = {f"{path}.bias" for path in paths}
    while missing:
        # The most of what is missing, and of those the one that brings the least besides.
        best = max(gains, key=lambda switch: (len(missing & set(gains[switch])), -len(gains[switch])), default=None)
        if best is None or not missing & set(gains[best]):
            raise InterventionError(_no_switch(model_class, paths, missing, tried))
        chosen.append(best)
        missing -= set(gains.pop(best))
    new = _gained(model_class, config, plain, tuple(chosen))
    if new is None or not {f"{path}.bias" for path in paths} <= set(new):
        raise InterventionError(f"{' and '.join(map(str, chosen))} do not work together in {model_class.__name__}")
    return Switched(tuple(chosen), new)


def _no_switch(model_class: Any, paths: Mapping[str, str], missing: set[str], tried: list[Switch]) -> str:
    names = ", ".join(map(str, tried)) or "it has none with 'bias' in its name"
    first = min(missing).removesuffix(".bias")
    return (
        f"{paths[first]!r} cannot be folded into a bias: in {model_class.__name__} no field of the config gives "
        f"{first} one ({len(missing)} such modules; fields tried: {names}), so transformers would not load it; fold at "
        "another site, or serve it with steer.attach"
    )


def _gained(model_class: Any, config: PretrainedConfig, plain: Shapes, switches: tuple[Switch, ...]) -> Shapes | None:
    """The biases that switches add; None if they take or change anything else."""
    changed = _built(model_class, config, switches)
    if changed is None or any(changed.get(name) != shape for name, shape in plain.items()):
        return None
    new = {name: shape for name, shape in changed.items() if name not in plain}
    return new if all(name.endswith(".bias") for name in new) else None


def _built(model_class: Any, config: PretrainedConfig, switches: tuple[Switch, ...]) -> Shapes | None:
    """Names and shapes of a model's parameters; None where it does not build."""
    copied = copy.deepcopy(config)
    for switch in switches:
        switch.set(copied)
    try:
        with torch.device("meta"):
            model = model_class._from_config(copied)
    # Any field may be one that a constructor objects to, in its own way.
    except Exception:
        return None
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
