"""Methods that break one promise each, and what the check that must find it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

import steer
from steer import ops, positions, sites
from steer.training import Learned


@dataclass
class Right(steer.Method):
    """Breaks nothing: multiplies what an MLP adds."""

    name: ClassVar[str] = "right"
    paper: ClassVar[str] = "https://example.org"
    summary: ClassVar[str] = "For tests."

    factor: float = 0.5

    def interventions(self, model_map):
        return [steer.Intervention(sites.mlp_out([1]), ops.Scale(self.factor))]


@dataclass
class RightLearned(Learned):
    """Breaks nothing: one vector after a layer, another after the next."""

    name: ClassVar[str] = "right_learned"
    paper: ClassVar[str] = "https://example.org"
    summary: ClassVar[str] = "For tests."

    def initial(self, model_map, generator):
        return {name: torch.zeros(model_map.tower().width) for name in ("first", "second")}

    def interventions(self, model_map):
        return [
            steer.Intervention(sites.resid_out([0]), ops.Add(self.tensors["first"])),
            steer.Intervention(sites.resid_out([1]), ops.Add(self.tensors["second"])),
        ]


def changed(base: type, **attributes: Any) -> type:
    """The class with some functions replaced."""
    return dataclass(type("Broken", (base,), attributes))


def applying(function: Callable[[torch.Tensor], torch.Tensor], layer: int = 1) -> type:
    """A method that puts a function on a layer's output."""

    def interventions(self, model_map):
        return [steer.Intervention(sites.resid_out([layer]), ops.Apply(function))]

    return changed(Right, interventions=interventions)


def lifted(x: torch.Tensor, rows: slice) -> torch.Tensor:
    """x (B, T, D) with a ramp added to some of the rows that this forward sees; norms would hide a factor."""
    y = x.clone()
    y[:, rows] += torch.linspace(-2, 2, x.shape[-1])
    return y


def never(self, model_map):
    return [steer.Intervention(sites.resid_out([0], positions=positions.index(10**6)), ops.Scale(0.0))]


def starts_at_one(self, model_map, generator):
    return {name: torch.ones(model_map.tower().width) for name in ("first", "second")}


def writes_into_its_tensors(self, model_map):
    self.tensors["first"].mul_(1.5)
    return RightLearned.interventions(self, model_map)


def detached(self, model_map):
    first, second = self.tensors["first"], self.tensors["second"].detach()
    return [
        steer.Intervention(sites.resid_out([0]), ops.Add(first)),
        steer.Intervention(sites.resid_out([1]), ops.Add(second)),
    ]


def multiplied_by_zero(self, model_map):
    first, second = self.tensors["first"], 0 * self.tensors["second"]
    return [steer.Intervention(sites.resid_out([0]), ops.Add(first + second))]


class KeptApart(Right):
    """What it learned is no tensor of its."""

    def fit_by_hand(self, model_map):
        self.vector = torch.ones(model_map.tower().width)
        return self

    def interventions(self, model_map):
        vector = getattr(self, "vector", torch.zeros(model_map.tower().width))
        return [steer.Intervention(sites.resid_out([1]), ops.Add(vector)), *super().interventions(model_map)]


def loses_a_tensor(self, folder):
    other = dataclasses.replace(self)
    other.tensors, other.provenance = {"first": self.tensors["first"]}, self.provenance
    RightLearned.save_pretrained(other, folder)


def saves_in_half(self, folder):
    other = dataclasses.replace(self)
    other.tensors = {name: one.half().float() for name, one in self.tensors.items()}
    other.provenance = self.provenance
    RightLearned.save_pretrained(other, folder)


def forgets_a_field(self, folder):
    Right.save_pretrained(dataclasses.replace(self, factor=0.25), folder)


def pickles(self, folder):
    Right.save_pretrained(self, folder)
    torch.save({}, Path(folder) / "more.pt")


def forgets_for_whom(self, *_):
    self.provenance = {}


def leaves_a_hook(model):
    def function(x):
        model.get_output_embeddings().register_forward_hook(lambda module, args, output: None)
        return 2 * x

    return applying(function)()


def leaves_a_hook_after_an_interrupt(model):
    """The last layer takes away what the first put there, if the forward comes so far."""
    kept = []

    def put(x):
        kept.append(model.get_output_embeddings().register_forward_pre_hook(lambda module, args: None))
        return 2 * x

    def take(x):
        kept.pop().remove()
        return x

    def interventions(self, model_map):
        return [steer.Intervention(sites.resid_out([n]), ops.Apply(f)) for n, f in ((0, put), (2, take))]

    return changed(Right, interventions=interventions)()


def writes_a_weight(model):
    def function(x):
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.01)
        return 2 * x

    return applying(function)()


def writes_a_weight_unseen(model):
    def function(x):
        weight = model.get_output_embeddings().weight
        weight.data = weight.data * 1.01
        return 2 * x

    return applying(function)()


def leaves_a_setting(model):
    def function(x):
        model.config.tried_by_a_test = True
        return 2 * x

    return applying(function)()


TRACES = {
    "a hook": (leaves_a_hook, "after a session: changed: hooks"),
    "a hook after an interrupt": (leaves_a_hook_after_an_interrupt, "after an interrupt: changed: hooks"),
    "a weight": (writes_a_weight, "weights written"),
    "a weight by the back door": (writes_a_weight_unseen, "differs by"),
    "a setting": (leaves_a_setting, "after a session: changed: config"),
}
"""What a method leaves behind: how it is made for a model, and what the message says."""

BREAKS = {
    "never fires": ("fires", lambda m: changed(Right, interventions=never)(), "never"),
    "changes nothing": ("fires", lambda m: Right(1.0), "no more than rounding"),
    "is no identity at the start": (
        "identity",
        lambda m: changed(RightLearned, initial=starts_at_one)(),
        "not the identity",
    ),
    "writes into its tensors": (
        "restores",
        lambda m: changed(RightLearned, interventions=writes_into_its_tensors)(),
        "its own tensors",
    ),
    "counts positions from what it sees": (
        "decoding",
        lambda m: applying(lambda x: lifted(x, slice(0, 1)))(),
        "with a cache: without a cache",
    ),
    "counts slots, padding too": (
        "decoding",
        lambda m: applying(lambda x: lifted(x, slice(8, 9)) if x.shape[1] > 9 else x)(),
        "padded",
    ),
    "mixes the rows of a batch": (
        "decoding",
        lambda m: applying(lambda x: x + x.mean(0, keepdim=True))(),
        "in a batch by",
    ),
    "keeps what it learned elsewhere": (
        "saves",
        lambda m: dataclass(KeptApart)().fit_by_hand(steer.inspect(m)),
        "something else",
    ),
    "loses a tensor": ("saves", lambda m: changed(RightLearned, save_pretrained=loses_a_tensor)(), "second"),
    "saves half of the digits": ("saves", lambda m: changed(RightLearned, save_pretrained=saves_in_half)(), "tensors"),
    "forgets a field": ("saves", lambda m: changed(Right, save_pretrained=forgets_a_field)(), "0.25"),
    "writes a pickle": ("saves", lambda m: changed(Right, save_pretrained=pickles)(), "more.pt"),
    "forgets for which model": (
        "saves",
        lambda m: changed(RightLearned, record_provenance=forgets_for_whom)(),
        "record_provenance",
    ),
    "fits every model": (
        "saves",
        lambda m: changed(RightLearned, check_fits=lambda self, model_map: None)(),
        "another width",
    ),
    "cuts a gradient off": (
        "learns",
        lambda m: changed(RightLearned, interventions=detached)(),
        "'second': nothing depends on it",
    ),
    "has a gradient of zero": (
        "learns",
        lambda m: changed(RightLearned, interventions=multiplied_by_zero)(),
        "'second': 0.0",
    ),
}
"""What a method breaks: the check that finds it, how it is made for a model, and what the message says."""
