"""What gates share: fitted methods held inside a method, and where their shifts begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import steer
from steer import fitting, prompts
from steer.errors import FingerprintError, InterventionError
from steer.fitting import fitted
from steer.nesting import pack, unpack


@dataclass
class Wrapper(steer.Method):
    """A method around others, which it keeps with their configuration, tensors and provenance.

    Attributes:
        inner: the wrapped methods as plain data; set by `over`.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.
            `over` sets it to the wrapped methods' where it is None.
    """

    inner: tuple[dict[str, Any], ...] = ()
    template: str | None = None

    def __post_init__(self) -> None:
        unpack(self.inner, {})

    def over(self, *methods: steer.Method) -> Self:
        """Wrap fitted methods, in place of those wrapped before; what this method itself has learned stays.

        Raises:
            SteerError: something is not a method of an installed plugin.
        """
        self.inner, wrapped = pack(methods)
        if self.template is None:
            self.template = next((one for one in (getattr(m, "template", None) for m in methods) if one), None)
        self.tensors = {name: one for name, one in self.tensors.items() if not name.startswith("inner.")} | wrapped
        return self

    def wrapped(self) -> list[steer.Method]:
        """The methods inside; their tensors are this method's.

        Raises:
            SteerError: there are none.
        """
        if not self.inner:
            raise steer.SteerError(
                f"method {self.name!r} wraps no method yet: steer.create({self.name!r}).over(fitted_method)"
            )
        return unpack(self.inner, self.tensors)

    def prompts(
        self, queries: Sequence[steer.Example], model: Any = None, processor: Any = None
    ) -> list[prompts.Prompt]:
        """What the wrapped method shows; where there are several, the queries alone."""
        if len(self.inner) == 1:
            return self.wrapped()[0].prompts(queries, model, processor)
        return super().prompts(queries, model, processor)

    def check_fits(self, model_map: steer.ModelMap) -> None:
        """Check this method and those inside.

        Raises:
            FingerprintError: one was made for another model; the message lists the differences.
        """
        super().check_fits(model_map)
        for index, method in enumerate(unpack(self.inner, self.tensors)):
            try:
                method.check_fits(model_map)
            except FingerprintError as error:
                raise FingerprintError(f"wrapped in {self.name!r} as number {index}: {error}") from error

    def _batches(
        self, model: Any, processor: Any, examples: Sequence[steer.Example], batch_size: int
    ) -> Sequence[prompts.Batch]:
        """The examples as queries; what they are answered with is not shown."""
        fitting.check(model, processor, (), at_least=0, method=self.name)
        for index, one in enumerate(examples):
            if not isinstance(one, steer.Example):
                raise steer.SteerError(f"examples[{index}] is a {type(one).__name__}, not a steer.Example")
        shown = self.prompts([replace(one, answer="") for one in examples], model, processor)
        return prompts.batches(model, processor, shown, template=self.template, batch_size=batch_size)


def begins(items: Sequence[steer.Intervention], model_map: steer.ModelMap, method: str) -> int:
    """The first layer of the text tower that interventions touch; the number of layers where they touch none.

    Raises:
        InterventionError: one acts before the text tower's first layer, or cannot be gated.
    """
    first = len(model_map.tower().layers)
    for item in items:
        site = item.site
        if site.name in ("kv_prefix", "cache"):
            raise InterventionError(f"method {method!r} cannot gate {item.label!r}: {site.name!r} takes no gate")
        if site.name == "logits":
            continue
        if site.tower != "text" or site.name == "embeddings":
            raise InterventionError(
                f"method {method!r} cannot gate {item.label!r} by the prompt: {site.name!r} of the {site.tower} tower "
                "comes before the text tower's first layer, where the decision is made at the earliest"
            )
        first = min([first, *(target.layer.index for target in model_map.targets(site))])
    return first


def number(method: steer.Method, name: str) -> float:
    """A number that `fit` kept among the tensors.

    Raises:
        SteerError: the method was not fitted.
    """
    check_shape(method, name, ())
    return float(fitted(method, name))


def check_shape(method: steer.Method, name: str, shape: tuple[int, ...]) -> None:
    """Check a tensor that `fit` made against the model and what is wrapped.

    Raises:
        InterventionError: it has another shape.
        SteerError: the method was not fitted.
    """
    found = tuple(fitted(method, name).shape)
    if found != shape:
        raise InterventionError(
            f"tensors[{name!r}] of method {method.name!r} must be {list(shape)} for this model and the methods that it "
            f"wraps, and is {list(found)}; fit it again"
        )
