"""In-context learning itself: demonstrations in the prompt, the baseline that every vector stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import fitting, prompts
from steer.fitting import fitted

from ._averaged import write_averaged
from ._packed import WORDS, pack, unpack


@dataclass
class ICL(steer.Method):
    """Demonstrations in front of every query; the model is not touched.

    `fit` keeps the examples, words and pictures. `prompts` puts some of them before each query, as
    `steer.Demonstrations` of the same fields does. With `orders` R > 1, `answer` shows a query's demonstrations in R
    orders at once and writes, at every step, the token of highest mean log-probability over the R prompts: that of the
    geometric mean of R next-token distributions.

    Source: https://arxiv.org/abs/2005.14165; how much an answer depends on the order: https://arxiv.org/abs/2104.08786.

    Attributes:
        shots: demonstrations before a query, at most.
        choose: "random", "balanced" over answers, or "similar" to the query by hidden states.
        order: "random" draws anew for each query; "fixed" shows all queries the same ones, or the most similar last.
        orders: how many orders an answer is averaged over; a query costs as many prompts.
        seed: of choice and orders.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.
    """

    name: ClassVar[str] = "icl"
    paper: ClassVar[str] = "https://arxiv.org/abs/2005.14165"
    summary: ClassVar[str] = "Demonstrations in the prompt: random, similar or balanced, over one order or many."

    shots: int = 4
    choose: Literal["random", "similar", "balanced"] = "random"
    order: Literal["random", "fixed"] = "random"
    orders: int = 1
    seed: int = 0
    template: str | None = None

    def __post_init__(self) -> None:
        # Whatever is wrong with the fields is said now and not after fitting.
        self._demonstrations(())

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        seed: int = 0,
    ) -> Self:
        """Keep the examples as demonstrations; runs nothing.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 1, with answers; their pictures PIL images, arrays or tensors.
            seed: kept with the result; the field `seed` decides what is shown.

        Returns:
            Itself, with `tensors`: "examples", the words as JSON in uint8 (N,), and "picture.I.J", picture J of example
            I as it is: uint8 (H, W, 3) of an RGB image.

        Raises:
            SteerError: no examples or answers, no processor, a picture that cannot be kept, or a model that does not
                write text.
        """
        fitting.check(model, processor, examples, at_least=1, method=self.name)
        self.tensors = pack(examples)
        self.record_provenance(steer.inspect(model), seed, examples)
        return self

    def demonstrations(self) -> steer.Demonstrations:
        """The examples kept, with the rule by which they are shown.

        Raises:
            SteerError: the method was not fitted.
        """
        fitted(self, WORDS)
        return self._demonstrations(unpack(self.tensors))

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """None: the prompt does everything. Use `answer`, or `steer.prompts` with `prompts(queries)`."""
        fitted(self, WORDS)
        return []

    def check_fits(self, model_map: steer.ModelMap) -> None:
        """Words and pictures fit every model."""

    def prompts(
        self, queries: Sequence[steer.Example], model: Any = None, processor: Any = None
    ) -> list[prompts.Prompt]:
        """One prompt for each query, its demonstrations in the first of their orders.

        Args:
            queries: what is asked; one that is among the examples is not shown itself.
            model: needed where `choose` is "similar".
            processor: the model's, for the same.

        Raises:
            SteerError: the method was not fitted, or "similar" came without a model.
        """
        return self.demonstrations().for_queries(queries, model, processor, template=self.template)

    def answer(
        self,
        model: torch.nn.Module,
        processor: Any,
        queries: Sequence[steer.Example],
        *,
        template: str | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 8,
    ) -> list[str]:
        """What the model writes after the demonstrations, greedily, averaged over `orders`. See `Method.answer`."""
        if self.orders == 1 or not queries:
            return super().answer(
                model,
                processor,
                queries,
                template=template,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
            )
        shown = self.demonstrations().prompts(queries, model, processor, template=self.template, batch_size=batch_size)
        return write_averaged(
            model,
            processor,
            shown,
            template=template if template is not None else self.template,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )

    def _demonstrations(self, pool: tuple[steer.Example, ...]) -> steer.Demonstrations:
        return steer.Demonstrations(pool, self.shots, self.choose, self.order, self.orders, self.seed)
