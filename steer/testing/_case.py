"""A method on a model: what every check starts from."""

from __future__ import annotations

import copy
from typing import Any

import torch

from .._bench import Bench, Inputs, distance, equal
from .._fold.verify import special_ids
from .._inspecting import inspect
from ..method import Method
from ..model_map import ModelMap
from ..session import Session, attach
from ..training import Learned

STIRRED, WRITTEN = 0.3, 2


class Case(Bench):
    """A method on a model, with what the model gives without it.

    Attributes:
        map: the model's map.
        writes: whether the model generates.
        method: the method, so that it acts: one that has not learned yet has made-up tensors.
    """

    def __init__(self, method: Method, model: Any, inputs: Inputs) -> None:
        super().__init__(model, inputs)
        written = self._try_to_write()
        self.writes = bool(written)
        self.plain += written
        self.map = inspect(model)
        self.method = acting(method, self.map)

    def attached(self, method: Method | None = None, strict: bool = False) -> Session:
        """A session with the case's method or another one."""
        return attach(self.model, method or self.method, strict=strict, model_map=self.map)

    def outputs(self) -> list[torch.Tensor]:
        """Of a forward, and of a model that writes the scores of two tokens: some methods act on those only."""
        return [*self.run(), *(self.write(WRITTEN) if self.writes else [])]

    def steered(self, method: Method | None = None) -> list[torch.Tensor]:
        """The outputs with the method attached."""
        with self.attached(method):
            return self.outputs()

    def write(self, count: int, inputs: Inputs | None = None, use_cache: bool = True) -> list[torch.Tensor]:
        """The first row's scores (1, V) of each token that is written greedily."""
        given = self.inputs if inputs is None else inputs
        out = self.model.generate(
            # Some write into what they are given.
            **{name: one.clone() for name, one in given.items()},
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            num_beams=1,
            use_cache=use_cache,
            suppress_tokens=self._not_written(),
            output_logits=True,
            return_dict_in_generate=True,
        )
        return [scores[:1] for scores in out.logits]

    def check_moved(self, outputs: list[torch.Tensor]) -> float:
        """How far outputs moved; what does nothing breaks no promise, so that nothing could be said of it.

        Raises:
            AssertionError: no further than rounding does.
        """
        moved = distance(outputs, self.plain)
        if moved <= self.tolerance / 100:
            raise AssertionError(
                f"{self.method.name} moves the output by {moved:.1e} of its size, no more than rounding does: give the "
                "method a configuration, and the model inputs, under which it does something"
            )
        return moved

    def _not_written(self) -> list[int]:
        """Special tokens: without a cache a model would look for the picture of a token that it wrote itself."""
        settings = self.model.generation_config.to_dict()
        forced = special_ids({name: value for name, value in settings.items() if name.startswith("forced_")})
        return sorted(special_ids(self.model.config.to_dict()) - forced)

    def _try_to_write(self) -> list[torch.Tensor]:
        if not getattr(self.model, "can_generate", lambda: False)():
            return []
        try:
            return self.write(WRITTEN)
        # Whatever a model raises whose generate does not take these inputs.
        except Exception:
            return []


def starting(method: Method, model_map: ModelMap) -> Method:
    """A copy with the tensors that a fit starts from; any other method than a `Learned` one as it is."""
    if not isinstance(method, Learned):
        return method
    copied = copy.copy(method)
    copied.tensors, copied.provenance = method.initial(model_map, torch.Generator().manual_seed(0)), {}
    return copied


def acting(method: Method, model_map: ModelMap) -> Method:
    """The method; one that has not learned yet as if it had: noise is added to what its fit would start from."""
    if not isinstance(method, Learned) or method.tensors:
        return method
    made = starting(method, model_map)
    generator = torch.Generator().manual_seed(1)
    made.tensors = {
        name: one + STIRRED * torch.randn(one.shape, generator=generator) if one.is_floating_point() else one
        for name, one in made.tensors.items()
    }
    made.record_provenance(model_map, 0, "made up by steer.testing")
    return made


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether they have the same names and bits."""
    return a.keys() == b.keys() and equal(list(a.values()), [b[name] for name in a])
