"""The greedy search for what each layer keeps of the latest part, from the last layer to the first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from steer import attach
from steer._teacher_forcing import still
from steer.memory import Memory, masks
from steer.memory.reading import answer_inputs
from steer.prompts import Batch
from steer.replaying import Replay
from steer_kernels import js_select, jsd

from ._importance import Observer, fresh_columns, pooled

if TYPE_CHECKING:
    from .emloc import EMLoC

GRID = (0.1, 0.2, 0.5)
"""The shares of a part that the published search tries."""


@dataclass(frozen=True)
class Limits:
    """Tokens of the sequence with a right of their own, bool (S,), and the slot where the latest part begins."""

    always: torch.Tensor
    answers: torch.Tensor
    since: int


@dataclass
class Found:
    """What each layer keeps, bool (B, H_kv, n), and what the search cost."""

    keep: dict[int, torch.Tensor]
    divergence: float
    spent: dict[str, float] = field(default_factory=dict)


class _Asked:
    """Questions and answers that go through the model together, and how to go on from any layer with them."""

    def __init__(self, model: Any, whole: Memory, batch: Batch) -> None:
        self._model = model
        self._inputs, self.predicts = answer_inputs(model, whole, batch)
        self.length = self._inputs["input_ids"].shape[1]
        self.replay = Replay(model)

    def logits(self, memory: Memory, layer: int = 0) -> torch.Tensor:
        """The scores (N, V) of the answers' tokens, from a layer upwards; below it runs nothing, pictures included."""
        inputs = self._inputs if not layer else {k: v for k, v in self._inputs.items() if not _is_picture(k)}
        with torch.no_grad(), masks(self._model), self.replay.from_layer(layer):
            cache = memory.cache(self.predicts.shape[0], self._model)
            logits = self._model(**inputs, past_key_values=cache).logits[:, -self.predicts.shape[1] :]
        return logits[self.predicts]

    def observed(self, whole: Memory, since: int, padding: bool, before: bool) -> tuple[torch.Tensor, Scores]:
        """The answers' scores after the whole part, and the attention that its tokens get from the observing rows."""
        rows = torch.ones_like(self.predicts) if padding else self.predicts
        rows = torch.nn.functional.pad(rows, (self.length - rows.shape[1], 0))
        observer = Observer(whole, since, rows, before)
        total = whole.length + self.length
        with (
            attach(self._model, observer.interventions(), prompt_length=total, measure="none"),
            self.replay.watch(),
        ):
            return self.logits(whole), observer.scores


class Trials:
    """Forwards over the part's questions and answers after a memory of which some layers are pruned."""

    def __init__(self, method: EMLoC, model: Any, whole: Memory, batches: Sequence[Batch], limits: Limits) -> None:
        self.whole = whole
        self.count, self.layers_run = 0, 0
        self.depth = max(whole.places) + 1
        self._asked = [_Asked(model, whole, batch) for batch in batches]
        how = limits.since, method.padding_observes, method.memory_in_softmax
        seen = [asked.observed(whole, *how) for asked in self._asked]
        self.teacher = torch.cat([logits for logits, _ in seen])
        self.scores = {layer: torch.stack([s[layer] for _, s in seen]).sum(0) for layer in whole.places}
        self.exact = self._replays()

    def divergence(self, memory: Memory, layer: int) -> float:
        """Mean divergence of the answers from those after the whole part; layers below `layer` are unpruned."""
        first = layer if self.exact else 0
        self.count += 1
        self.layers_run += self.depth - first
        logits = self._logits(memory, first)
        return float(jsd(self.teacher, logits).mean())

    def _logits(self, memory: Memory, layer: int) -> torch.Tensor:
        return torch.cat([asked.logits(memory, layer) for asked in self._asked])

    def _replays(self) -> bool:
        """Whether this model can go on from a layer: some add pictures again further up."""
        layers = sorted(self.whole.places)[1:]
        ends = {layers[0], layers[-1]} if layers else set()
        return all(torch.allclose(self._logits(self.whole, i), self.teacher, rtol=1e-4, atol=1e-4) for i in ends)


def search(
    method: EMLoC, model: Any, whole: Memory, batches: Sequence[Batch], limits: Limits, budget: float | None
) -> Found:
    """What to keep of the latest part: under the method's bound, or so many tokens in every layer."""
    with still(model):
        trials = Trials(method, model, whole, batches, limits)
        choose = _Chooser(method, trials, limits)
        if budget is None:
            return _described(_greedy(method, trials, choose), trials)
        return _described(_evenly(trials, choose, budget), trials)


def _described(found: Found, trials: Trials) -> Found:
    found.spent = {
        "divergence": found.divergence,
        "trials": trials.count,
        "forwards": round(trials.layers_run / trials.depth + 1, 2),
    }
    return found


class _Chooser:
    """The best tokens of a layer for a number of them, old ones always among them."""

    def __init__(self, method: EMLoC, trials: Trials, limits: Limits) -> None:
        self._method, self._limits, self.whole = method, limits, trials.whole
        self._ranked: dict[int, torch.Tensor] = {}
        self.fresh: dict[int, torch.Tensor] = {}
        for layer, scores in trials.scores.items():
            fresh = fresh_columns(self.whole, layer, limits.since)
            self.fresh[layer] = fresh
            self._ranked[layer] = pooled(scores[:, fresh], method.kernel_size)

    def size(self, layer: int) -> int:
        """How many tokens of the latest part a layer holds."""
        return int(self._ranked[layer].shape[1])

    def least(self, layer: int) -> int:
        """The fewest that may be kept of them."""
        return max(1, int(self._marked(layer, self._limits.always).sum()))

    def __call__(self, layer: int, number: int) -> torch.Tensor:
        """Keep the best `number`, of two alike the earlier one: bool (1, H_kv, n)."""
        ranked = self._ranked[layer].clone()
        if not self._method.per_head:
            ranked = ranked.mean(0, keepdim=True).expand_as(ranked).clone()
        always, answers = (self._marked(layer, m) for m in (self._limits.always, self._limits.answers))
        share = self._method.answer_share
        if share is None:
            ranked[:, answers] += 100.0
        else:
            # only the best-scored answers are safe, so that they do not drive out what all queries attend to
            safe = min(int(answers.sum()), int(share * number))
            if safe:
                among = ranked.masked_fill(~answers, -math.inf).topk(safe, dim=-1).indices
                ranked.scatter_(1, among, ranked.gather(1, among) + 100.0)
        ranked[:, always] = math.inf
        part = js_select(ranked, count=number)
        kept = self.whole.kept(layer)
        keep = (~self.fresh[layer]).expand(kept.heads, -1).clone()
        keep[:, self.fresh[layer]] = part
        return keep[None]

    def _marked(self, layer: int, slots: torch.Tensor) -> torch.Tensor:
        where = self.whole.kept(layer).slots[0, 0, self.fresh[layer]]
        return slots.to(where.device)[where]


def _greedy(method: EMLoC, trials: Trials, choose: _Chooser) -> Found:
    memory, keep, reached = trials.whole, {}, 0.0
    layers = sorted(trials.whole.places, reverse=True)
    groups = [layers[i : i + method.group] for i in range(0, len(layers), method.group)]
    for done, group in enumerate(groups, start=1):
        bound = method.max_divergence
        allowed = bound * done / len(groups) if method.schedule == "growing" else bound

        def attempt(number: int, group: list[int] = group, memory: Memory = memory) -> _Attempt:
            chosen = {layer: choose(layer, number) for layer in group}
            return trials.divergence(memory.keep(chosen), min(group)), chosen

        look = _bisect if method.bisect else _first_of_grid
        accepted = look(choose.least(group[0]), choose.size(group[0]), allowed, attempt)
        if accepted is not None:
            reached, chosen = accepted
            keep.update(chosen)
            memory = memory.keep(chosen)
    return Found(keep, reached)


_Attempt = tuple[float, dict[int, torch.Tensor]]


def _first_of_grid(least: int, most: int, allowed: float, attempt: Callable[[int], _Attempt]) -> _Attempt | None:
    for share in GRID:
        found = attempt(max(1, int(share * most)))
        if found[0] <= allowed:
            return found
    return None


def _bisect(least: int, most: int, allowed: float, attempt: Callable[[int], _Attempt]) -> _Attempt | None:
    """The smallest number that holds the bound, to one part in 32; the accepted one was itself tried."""
    step, accepted = max(1, most // 32), None
    number = low = least
    high = most
    while low < high:
        found = attempt(number)
        if found[0] <= allowed:
            accepted, high = found, number
        else:
            low = number + step
        number = (low + high) // 2
    return accepted


def _evenly(trials: Trials, choose: _Chooser, budget: float) -> Found:
    """The same number in every layer."""
    keep = {layer: choose(layer, min(max(1, round(budget)), choose.size(layer))) for layer in trials.whole.places}
    return Found(keep, trials.divergence(trials.whole.keep(keep), min(keep)))


def _is_picture(name: str) -> bool:
    return name.startswith("pixel_values")


Scores = dict[int, torch.Tensor]
