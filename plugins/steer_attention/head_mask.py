"""Heads taken out of a model: silenced, or held at their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import fitting, ops, prompts, sites
from steer.fitting import fitted
from steer.prompt_state import prompt_states

from ._heads import Heads, as_pairs, chosen
from ._rows import Where, check_where, rows


@dataclass
class HeadMask(steer.Method):
    """Chosen heads say nothing, or always the same.

    Use, for o (B, T, H, d_v), the input of the output projection, and the chosen heads h at the chosen tokens:
    o_h' = 0, or o_h' = mu_h, the mean of o_h over examples (mean ablation: it leaves what a head says of every input
    and takes what it says of this one, where zero takes both).

    Source: https://arxiv.org/abs/1905.10650 (heads silenced one at a time).

    Attributes:
        heads: "all"; (layer, head) pairs; the heads of each layer, such as {3: [0, 5]}; or a `steer.HeadMap`, whose 10
            top heads are taken. Kept as pairs.
        to: "zero", which needs no fitting, or "mean".
        where: "all" tokens; those from which the "answer" is written, the prompt's last and every one after it; or
            "last_prompt". With "mean" it is also where `fit` takes mu: the mean over a prompt's tokens, or its last
            token, and of these the mean over prompts.
        template: how an example is written when fitting, as in `steer.prompts.encode`; None for the chat template.

    Raises:
        InterventionError: `heads` is none of these, empty, or names a head twice.
        UnknownNameError: an unknown `to` or `where`.
    """

    name: ClassVar[str] = "head_mask"
    paper: ClassVar[str] = "https://arxiv.org/abs/1905.10650"
    summary: ClassVar[str] = "Silences chosen attention heads, or holds them at their mean."

    heads: Heads = "all"
    to: Literal["zero", "mean"] = "zero"
    where: Where = "all"
    template: str | None = None

    def __post_init__(self) -> None:
        self.heads = as_pairs(self.heads, self.name)
        check_where(self.where, self.name)
        if self.to not in ("zero", "mean"):
            raise steer.errors.unknown_name(f"to of method {self.name!r}", self.to, ("zero", "mean"))

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        seed: int = 0,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Take the heads' means: one forward for each example, shown without its answer.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 1; their answers are not looked at.
            seed: kept with the result; nothing here is random.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "means.L" (k_L, d_v), the means of the k_L chosen heads of layer L.

        Raises:
            SteerError: `to` is "zero"; no examples, no processor, or a model that does not write text.
        """
        if self.to == "zero":
            return super().fit(model, processor, examples, seed=seed)
        fitting.check(model, processor, (), at_least=0, method=self.name)
        if not examples:
            raise steer.SteerError(f"method {self.name!r} needs at least 1 example to take a mean of, got 0")
        picked = chosen(self.heads, steer.inspect(model), self.name)
        asked = [prompts.Prompt(replace(one, answer="")) for one in examples]
        batches = prompts.batches(model, processor, asked, template=self.template, batch_size=batch_size)
        bar = fitting.track(batches, f"{self.name}: reading heads", progress=progress)
        places = [sites.head_out(one.layer) for one in picked]
        states = prompt_states(model, bar, places, "mean" if self.where == "all" else "last")
        self.tensors = {
            f"means.{one.layer}": found.mean(0)[list(one.heads)] for one, found in zip(picked, states, strict=True)
        }
        self.record_provenance(steer.inspect(model), seed, examples)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """One for each layer that has chosen heads."""
        where = rows(self.where)
        return [
            steer.Intervention(
                sites.head_out(one.layer, one.heads, positions=where),
                ops.Scale(0.0) if self.to == "zero" else ops.Replace(fitted(self, f"means.{one.layer}")),
            )
            for one in chosen(self.heads, model_map, self.name)
        ]
