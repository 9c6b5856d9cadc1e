"""A library of shifts, of which each query picks one or none (after ELICIT, Wang et al., 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch.nn.functional import normalize

import steer
from steer import fitting, sites
from steer.conditions import Cut, best_cut, held_out
from steer.fitting import fitted
from steer.latch import check_order, latched
from steer.prompt_state import Pool, prompt_states

from ._wrapper import Wrapper, begins, check_shape, number

NONE = -1


@dataclass
class GateRetrieval(Wrapper):
    """Of several fitted methods, in each row of a batch the one whose key is nearest to the row's prompt, or none.

    Use, for h (B, D) the residual stream before a layer at the last token of each row's prompt, m the centre and k_i
    the key of member i: s_i = cos(h - m, k_i); the member with the largest s_i acts in the row if that is above the
    threshold, at full strength, and no other does. It is decided once, as the prompt is read, and holds for every token
    of the row. The members must act at that layer or after it.

    Fit: m is the mean over classes of their mean states, k_i the mean state of member i's examples minus m; examples
    that no member should serve are a class for m, without a key. Layer and threshold by the share of held-out examples
    that get the right member, or rightly none.

    Source: the mechanism of https://arxiv.org/abs/2410.09343: a library of task vectors and a retriever with a
    threshold that picks one of them or none. There the retriever is a trained classifier on the query's text; here it
    is the nearest class mean of the model's own states, so that nothing is trained and it works for pictures.

    Attributes:
        layer: before which the keys are read; None chooses one when fitting.
        pool: of the prompt's tokens the `"last"` one, or their `"mean"`.
        above: the threshold, from -1 (always the nearest) to 1; None chooses when fitting, and is -1 if no example is
            one that no member should serve.
    """

    name: ClassVar[str] = "gate_retrieval"
    paper: ClassVar[str] = "https://arxiv.org/abs/2410.09343"
    summary: ClassVar[str] = "Keeps a library of fitted methods, of which each query picks one or none."

    layer: int | None = None
    pool: Pool = "last"
    above: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in ("mean", "last"):
            raise steer.errors.unknown_name(f"pool of method {self.name!r}", self.pool, ("mean", "last"))

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[steer.Example],
        *,
        labels: Sequence[int | None] = (),
        seed: int = 0,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Self:
        """Make the keys: one forward for each example, whatever the number of layers.

        Args:
            model: any mapped model.
            processor: its processor or tokenizer.
            examples: at least 2 for each member; answers are not looked at.
            labels: for each example the number of the member that should serve it, in the order of `over`, or None.
            seed: of what is held out, a quarter of each class.
            batch_size: prompts in one forward.
            progress: show a bar on standard error.

        Returns:
            Itself, with `tensors`: "keys" (members, D), "centre" (D,), and as one number each "layer", "threshold" and
            "accuracy" on what was held out.

        Raises:
            SteerError: labels that do not fit, too few examples, no processor, or no method to wrap.
            InterventionError: a member acts before `layer`.
        """
        model_map = steer.inspect(model)
        members = self._shifts(model_map)
        wanted = _labels(labels, len(examples), len(members), self.name)
        first = min(begins(items, model_map, self.name) for items in members)
        if self.layer is not None:
            check_order(self.layer, first, self.name)
        layers = [one.index for one in model_map.tower().layers if one.index <= first]
        layers = layers if self.layer is None else [self.layer]
        bar = fitting.track(
            self._batches(model, processor, examples, batch_size), f"{self.name}: reading prompts", progress=progress
        )
        states = prompt_states(model, bar, [sites.resid_in(layer) for layer in layers], self.pool)
        held = held_out(wanted, seed)
        found = [self._at(rows, wanted, held, len(members)) for rows in states]
        best = max(range(len(layers)), key=lambda i: (found[i][2].rank, -i))
        keys, centre, cut = found[best]
        numbers = {"layer": layers[best], "threshold": cut.at, "accuracy": cut.value}
        own = {name: torch.tensor(float(value)) for name, value in numbers.items()}
        inner = {name: one for name, one in self.tensors.items() if name.startswith("inner.")}
        self.tensors = {"keys": keys, "centre": centre, **own, **inner}
        self.record_provenance(model_map, seed, examples)
        return self

    def _at(
        self, states: torch.Tensor, wanted: torch.Tensor, held: torch.Tensor, members: int
    ) -> tuple[torch.Tensor, torch.Tensor, Cut]:
        """Keys and centre at one layer, and the threshold."""
        classes = [NONE, *range(members)] if (wanted == NONE).any() else range(members)
        means = torch.stack([states[(wanted == one) & ~held].double().mean(0) for one in classes])
        centre = means.mean(0)
        keys, centre = (means[-members:] - centre).float(), centre.float()
        best, picked = _nearest(states[held], keys, centre)
        right = wanted[held]

        def accuracy(chosen: torch.Tensor) -> float:
            return float((torch.where(chosen, picked, NONE) == right).float().mean())

        if self.above is None and (wanted == NONE).any():
            return keys, centre, best_cut(best, accuracy)
        at = -1.0 if self.above is None else self.above
        # The margin ranks layers where there is no threshold to rank them by.
        scores = _cosines(states[held], keys, centre).topk(min(2, members), dim=-1).values
        return keys, centre, Cut(at, accuracy(best > at), float((scores[:, 0] - scores[:, -1]).min()))

    def _shifts(self, model_map: steer.ModelMap) -> list[list[steer.Intervention]]:
        return [method.interventions(model_map) for method in self.wrapped()]

    def _decide(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """From states (B, D) to strengths (B, members)."""
        keys, centre, threshold = fitted(self, "keys"), fitted(self, "centre"), number(self, "threshold")

        def decide(states: torch.Tensor) -> torch.Tensor:
            best, picked = _nearest(states, keys.to(states), centre.to(states))
            chosen = torch.nn.functional.one_hot(picked, len(keys)).float()
            return chosen * (best > threshold).float().unsqueeze(-1)

        return decide

    def decide(
        self, model: torch.nn.Module, processor: Any, queries: Sequence[steer.Example], *, batch_size: int = 16
    ) -> list[int | None]:
        """Which member would act on each query: its number, or None.

        Raises:
            SteerError: the method was not fitted.
        """
        decide, layer = self._decide(), int(number(self, "layer"))
        batches = self._batches(model, processor, queries, batch_size)
        (states,) = prompt_states(model, batches, [sites.resid_in(layer)], self.pool)
        return [int(row.argmax()) if bool(row.any()) else None for row in decide(states)]

    def interventions(self, model_map: steer.ModelMap) -> list[steer.Intervention]:
        """The one that decides, and every member's with the decision as their gate."""
        members, layer = self._shifts(model_map), int(number(self, "layer"))
        check_order(layer, min(begins(items, model_map, self.name) for items in members), self.name)
        check_shape(self, "keys", (len(members), model_map.tower().width))
        check_shape(self, "centre", (model_map.tower().width,))
        return latched(members, self._decide(), layer, self.pool)


def _cosines(states: torch.Tensor, keys: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    return normalize(states - centre, dim=-1) @ normalize(keys, dim=-1).T


def _nearest(states: torch.Tensor, keys: torch.Tensor, centre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest cosine of each state (B, D), and whose it is: two tensors (B,)."""
    scores = _cosines(states, keys, centre)
    return scores.amax(-1), scores.argmax(-1)


def _labels(labels: Sequence[int | None], examples: int, members: int, method: str) -> torch.Tensor:
    """(N,), NONE for None.

    Raises:
        SteerError: another number of labels than examples, a label that is no member, a member with too few examples.
    """
    if len(labels) != examples:
        raise steer.SteerError(
            f"method {method!r} needs for each example the number of its member, or None (labels=...): "
            f"{examples} examples, {len(labels)} labels"
        )
    for one in labels:
        if one is not None and one not in range(members):
            raise steer.errors.unknown_name("member", one, range(members), "None is for what no member should serve")
    few = [one for one in [*range(members), *{None} & set(labels)] if sum(label == one for label in labels) < 2]
    if few or (members == 1 and None not in labels):
        raise steer.SteerError(
            f"method {method!r} needs at least 2 examples for each member (too few: {few}), and with one member also "
            "examples that it should not serve, labelled None"
        )
    return torch.tensor([NONE if one is None else one for one in labels])
