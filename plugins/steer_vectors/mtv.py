"""Multimodal task vectors (Huang, Mitra, Arbelle, Karlinsky, Darrell and Herzig, 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import fitting, ops, positions, profiling, prompts, sites
from steer.fitting import fitted, split

from . import _head_sets as head_sets
from . import _reinforce


@dataclass
class MTV(steer.Method):
    """What many prompts with demonstrations leave in some heads, put in the same heads without demonstrations.

    Fit, for head h of layer l, with a[l,h] (d_v,) what enters the output projection at the prompt's last token:

    1. mu[l,h] = mean of a[l,h] over `contexts` prompts of `shots` demonstrations and a query.
    2. Which heads: independent Bernoulli variables with logits (L, H) from -1. At each of `steps` steps one bare query
       is answered under `samples` sampled sets, mu replacing a in each set's heads; loss = -log p(answer's first
       token); advantage A = (mean - loss) / (std + 1e-3); Adam on -sum A log p(set), p clamped to [1e-3, 1 - 1e-3].
    3. `draws` sets are drawn from the result; the one with the least mean loss on held-out queries is kept.

    Use: a[l,h] = mu[l,h] for the kept heads, at the last token of the prompt and (`where`) at every token after it.

    Source: https://arxiv.org/abs/2406.15334 and the authors' `mtv_utils.py`, which works on one prompt at a time; here
    any batch does the same in each of its rows.

    Attributes:
        shots: demonstrations in a context, at most.
        contexts: how many mu is the mean of.
        steps: of the optimisation.
        samples: sets of heads tried in a step.
        lr: of Adam.
        draws: sets from which the last choice is made.
        where: "answer" replaces at the last prompt token and at every token after it, as the authors do: a model that
            has nothing else to go by then writes the answer again and again. "last_prompt" leaves what follows alone.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.
    """

    name: ClassVar[str] = "mtv"
    paper: ClassVar[str] = "https://arxiv.org/abs/2406.15334"
    summary: ClassVar[str] = "Replaces some heads' results by their mean over demonstrations; heads found by REINFORCE."

    shots: int = 4
    contexts: int = 100
    steps: int = 600
    samples: int = 32
    lr: float = 0.1
    draws: int = 10
    where: Literal["answer", "last_prompt"] = "answer"
    template: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 2 or self.draws < 1 or self.contexts < 1:
            raise steer.errors.InterventionError(
                "mtv needs at least 2 samples, 1 draw and 1 context, "
                f"got samples={self.samples}, draws={self.draws}, contexts={self.contexts}"
            )

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        seed: int = 0,
        dev: Sequence[steer.Example] | None = None,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Read the means, learn the heads: `contexts` + `steps` times `samples` + `draws` times len(dev) prompts.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 4, with answers.
            seed: of the contexts, the sampled sets, and of what is held out.
            dev: examples by which the last choice is made; None holds a quarter of `examples` out.
            batch_size: prompts, and sampled sets, in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "heads", layer and head of those kept, (k, 2); "means.L", mu of the kept heads of
            layer L, (k_L, d_v); "probabilities" (L, H), zero where a layer has no such head; "losses" of each draw on
            `dev`, (draws,).

        Raises:
            SteerError: too few examples, no answers, no processor, a model that does not write text, or no draw with
                any head is the best.
        """
        pool, held = split(model, processor, examples, dev, seed, self.name)

        def make(asked: list[prompts.Prompt], size: int = batch_size) -> Sequence[prompts.Batch]:
            return prompts.batches(model, processor, asked, template=self.template, batch_size=size)

        contexts = make(prompts.draw(pool, self.contexts, self.shots, seed=seed))
        shown = fitting.track(contexts, "mtv: reading contexts", progress=progress)
        means = {key.layer: rows.mean(0) for key, rows in fitting.states(model, shown, sites.head_out()).items()}
        generator = torch.Generator().manual_seed(seed)
        turns = make(prompts.draw(pool, self.steps, 0, seed=seed + 1), 1)
        logits = _reinforce.learn(
            sum(map(len, means.values())),
            fitting.track(range(self.steps), "mtv: choosing heads", progress=progress),
            lambda step, masks: -profiling.scores(model, turns[step], means, masks, batch_size).first_log_prob,
            samples=self.samples,
            lr=self.lr,
            generator=generator,
        )
        p = _reinforce.probabilities(logits)
        drawn = torch.bernoulli(p.expand(self.draws, -1), generator=generator).bool()
        asked = make([prompts.Prompt(one) for one in held])
        losses = torch.stack(
            [
                -fitting.score(model, asked, *self._replace(head_sets.chosen(means, mask))).first_log_prob.mean()
                for mask in fitting.track(list(drawn), "mtv: comparing draws", progress=progress)
            ]
        )
        self.tensors = {
            **_kept(head_sets.chosen(means, drawn[int(losses.argmin())])),
            "probabilities": profiling.by_layer(p, means).nan_to_num(0.0),
            "losses": losses,
        }
        self.record_provenance(steer.inspect(model), seed, examples)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The replacements, one for each layer that has kept heads."""
        places = fitted(self, "heads").long().tolist()
        heads: dict[int, list[int]] = {}
        for layer, head in places:
            heads.setdefault(layer, []).append(head)
        return self._replace({layer: (some, fitted(self, f"means.{layer}")) for layer, some in heads.items()})

    def _replace(self, chosen: head_sets.Chosen) -> list[steer.Intervention]:
        rows = positions.answer() if self.where == "answer" else positions.last_prompt()
        return [
            steer.Intervention(sites.head_out(layer, heads, positions=rows), ops.Replace(values))
            for layer, (heads, values) in chosen.items()
        ]


def _kept(chosen: head_sets.Chosen) -> dict[str, torch.Tensor]:
    """What is saved of the heads kept."""
    if not chosen:
        raise steer.SteerError(
            "of the sets of heads drawn, the empty one answers best: no head's mean over demonstrations helps on this "
            "task; more examples, more steps or another task may"
        )
    places = [(layer, head) for layer, (heads, _) in chosen.items() for head in heads]
    return {"heads": torch.tensor(places).float(), **{f"means.{k}": values for k, (_, values) in chosen.items()}}
