"""Function vectors (Todd, Li, Sen Sharma, Mueller, Wallace and Bau, 2023)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch

import steer
from steer import fitting, ops, positions, profiling, prompts, sites
from steer._sharding import projected
from steer.fitting import fitted, split


@dataclass
class FunctionVector(steer.Method):
    """The sum of what the heads that carry a task write at the end of a prompt with demonstrations.

    Fit, for head h of layer l, with a[l,h] (d_v,) what enters the output projection at the prompt's last token:

    1. a_bar[l,h] = mean of a[l,h] over prompts with demonstrations.
    2. Causal indirect effect, on prompts that do not tell the task (`corrupt`):
       CIE = p(answer | a[l,h] replaced by a_bar[l,h]) - p(answer), of the answer's first token; AIE its mean over
       trials.
    3. The `heads` heads of highest AIE. The sign counts: heads that work against the task (AIE <= 0) are never taken,
       so there may be fewer.
    4. v = sum of W_O[l,h] a_bar[l,h] over these heads, (D,).

    Use: h = h + strength v at the last token of the prompt, after the layer where held-out queries are answered best.

    Source: https://arxiv.org/abs/2310.15213 and the authors' `compute_indirect_effect.py` and `extract_utils.py`. Their
    10 heads are for GPT-J; the paper takes more in larger models.

    Attributes:
        heads: how many heads are summed, at most.
        shots: demonstrations in a prompt, at most.
        contexts: how many prompts a_bar is the mean of.
        trials: how many prompts AIE is the mean of.
        corrupt: how demonstrations are made to say nothing of the task in 2. "shuffle", as in the paper, deals their
            answers out at random. Where the answers' words alone give the task away (all are colours, say), that
            hides nothing and no head has an effect: "remove" leaves the demonstrations out.
        layer: after which v is added; None chooses one when fitting.
        strength: what v is multiplied by.
        where: add it at the last prompt token, as the paper does, or at every token written after it as well.
        template: how an example is written, as in `steer.prompts.encode`; None for the processor's chat template.
    """

    name: ClassVar[str] = "function_vector"
    paper: ClassVar[str] = "https://arxiv.org/abs/2310.15213"
    summary: ClassVar[str] = "Adds what the heads that cause in-context learning write, at the prompt's end."
    # Best of four on dev pictures: docs/experiments/demo_settings.py; fewer prompts than the paper's, for a minute.
    demo: ClassVar[dict[str, Any]] = {
        "heads": 20,
        "corrupt": "remove",
        "strength": 2.0,
        "contexts": 48,
        "trials": 12,
    }

    heads: int = 10
    shots: int = 10
    contexts: int = 100
    trials: int = 25
    corrupt: Literal["shuffle", "remove"] = "shuffle"
    layer: int | None = None
    strength: float = 1.0
    where: Literal["last_prompt", "answer"] = "last_prompt"
    template: str | None = None

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
        """Find the heads, make the vector, choose the layer.

        Costs `contexts` forwards, `trials` times the number of heads in the model, and one over `dev` for each layer.

        Args:
            model: any mapped model that writes text.
            processor: its processor or tokenizer.
            examples: at least 4, with answers.
            seed: of the prompts, and of what is held out.
            dev: examples by which the layer is chosen; None holds a quarter of `examples` out.
            batch_size: prompts, and heads that are tried, in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "vector" (D,); "layer" (the number, as a float); "effects", AIE as (L, H), zero
            where a layer has no such head; "heads", layer and head of those taken, (k, 2); "accuracy", for each layer
            tried the share of `dev` answered right.

        Raises:
            SteerError: too few examples, no answers, no processor, or a model that does not write text.
        """
        pool, held = split(model, processor, examples, dev, seed, self.name)
        make = functools.partial(prompts.batches, model, processor, template=self.template, batch_size=batch_size)
        shown = fitting.track(
            make(prompts.draw(pool, self.contexts, self.shots, seed=seed)),
            "function_vector: reading heads",
            progress=progress,
        )
        means = {key.layer: rows.mean(0) for key, rows in fitting.states(model, shown, sites.head_out()).items()}
        shots = self.shots if self.corrupt == "shuffle" else 0
        broken = prompts.draw(pool, self.trials, shots, seed=seed + 1, shuffle_answers=True)
        effects = indirect_effects(model, make(broken, batch_size=1), means, batch_size, progress=progress)
        chosen = top_heads(effects, self.heads)
        vector = written(model, {place: means[place[0]][place[1]] for place in chosen})
        layers = range(len(effects)) if self.layer is None else [range(len(effects))[self.layer]]
        layer, accuracy = fitting.best(
            model,
            make([prompts.Prompt(one) for one in held]),
            layers,
            lambda layer: self._add(layer, vector),
            description="function_vector: trying layers",
            progress=progress,
        )
        self.tensors = {
            "vector": vector,
            "layer": torch.tensor(float(layer)),
            "effects": effects,
            "heads": torch.tensor(chosen).float(),
            "accuracy": accuracy,
        }
        self.record_provenance(steer.inspect(model), seed, examples)
        return self

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The addition at the chosen layer."""
        return [self._add(int(fitted(self, "layer")), fitted(self, "vector"))]

    def _add(self, layer: int, vector: torch.Tensor) -> steer.Intervention:
        rows = positions.last_prompt() if self.where == "last_prompt" else positions.answer()
        return steer.Intervention(sites.resid_out(layer, positions=rows), ops.Add(vector, self.strength))


def indirect_effects(
    model: Any, queries: Sequence[prompts.Batch], means: profiling.Means, batch_size: int, *, progress: bool = False
) -> torch.Tensor:
    """Average indirect effect of every head, (L, H), zero where a layer has no such head.

    Args:
        model: the model.
        queries: prompts that do not tell the task, one in each batch.
        means: for each layer (H, d_v), what each head's result is replaced by.
        batch_size: heads tried in one forward.
        progress: show a bar.
    """
    gained = []
    for query in fitting.track(queries, "function_vector: trying heads", progress=progress):
        before, after = profiling.effects(model, query, means, batch_size)
        gained.append(after.first_log_prob.exp() - before.first_log_prob.exp())
    return profiling.by_layer(torch.stack(gained).mean(0), means).nan_to_num(0.0)


def top_heads(effects: torch.Tensor, count: int) -> list[tuple[int, int]]:
    """(layer, head) of the highest effects (L, H), highest first: at most `count`, none that is not above zero.

    Raises:
        SteerError: no head has a positive effect.
    """
    order = effects.flatten().argsort(descending=True, stable=True)[:count].tolist()
    found = [divmod(i, effects.shape[1]) for i in order if effects.flatten()[i] > 0]
    if not found:
        raise steer.SteerError(
            "no head makes the right answers likelier when its mean over demonstrations is put in its place: "
            "the model does not learn this task from context, or the examples are too few"
        )
    return found


def written(model: Any, results: Mapping[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    """What heads' results (d_v,) add to the residual stream together, (D,): the sum of W_O[:, h] result.

    The projection is called, never read: it may be quantised, sharded or adapted. Its bias belongs to no head.
    """
    layers = steer.inspect(model).tower().layers
    total: torch.Tensor | float = 0.0
    for (layer, head), result in results.items():
        attention = layers[layer].attention
        assert attention is not None
        assert attention.out_proj is not None
        projection = model.get_submodule(attention.out_proj)
        home = next((p.device for p in projection.parameters() if p.device.type != "meta"), model.device)
        rows = torch.zeros(2, 1, attention.num_heads or 1, len(result), dtype=model.dtype, device=home)
        rows[1, 0, head] = result
        with torch.no_grad():
            zero, one = projected(model, attention, rows).float().cpu()
        total = total + (one - zero).squeeze(0)
    return total
