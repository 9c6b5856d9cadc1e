"""What `steer check` runs: the promises that must hold on any model, tried on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from . import ops, positions, sites
from ._bench import Bench, Check, Inputs, Status, distance, state
from .errors import NeverFiredError, SteerError
from .intervention import Intervention
from .model_map import Attention, Layer, ModelMap, Tower
from .session import attach

IDENTITY_SITES = ("resid_in", "resid_out", "attn_out", "mlp_out", "head_q", "head_k", "head_v", "head_out")
Job = Callable[[], list[Check]]


def plan(model: nn.Module, model_map: ModelMap, inputs: Inputs, every_head: bool = False) -> list[Job]:
    """The checks, each to be called once. The model is in eval mode and is left as it was.

    Args:
        model: with weights.
        model_map: its map.
        inputs: for `model(**inputs)`; they should reach every tower that is to be checked.
        every_head: try the head edit on every head instead of the first and last of three layers a tower.
    """
    bench = _Bench(model, model_map, inputs)
    jobs: list[Job] = [bench.mapped, bench.empty, bench.restored, bench.restored_after_error, bench.silence]
    for tower in model_map.towers.values():
        jobs += [partial(bench.identity, tower, site) for site in IDENTITY_SITES]
    jobs += [partial(bench.head_edit, *place) for place in _heads(model_map, every_head)]
    return [*jobs, bench.cache]


def _heads(model_map: ModelMap, every_head: bool) -> Iterator[tuple[Tower, Layer, Attention, int]]:
    for tower in model_map.towers.values():
        found = [
            (layer, layer.attention, layer.attention.num_heads)
            for layer in tower.layers
            if layer.attention is not None and layer.attention.num_heads
        ]
        if not every_head and found:
            found = [found[index] for index in sorted({0, len(found) // 2, len(found) - 1})]
        for layer, attention, count in found:
            for head in range(count) if every_head else sorted({0, count - 1}):
                yield tower, layer, attention, head


class _Bench(Bench):
    """The promises, each a method that tries it on the model."""

    def __init__(self, model: nn.Module, model_map: ModelMap, inputs: Inputs) -> None:
        super().__init__(model, inputs)
        self.map = model_map

    def mapped(self) -> list[Check]:
        """Towers were found, and every softmax attention has its heads and its output projection."""
        checks = []
        for name, tower in self.map.towers.items():
            attentions = [layer.attention for layer in tower.layers if layer.attention]
            known = [a for a in attentions if a.kind != "softmax" or (a.num_heads and a.value_dim and a.out_proj)]
            status: Status = "pass" if len(known) == len(attentions) else "fail"
            detail = f"{len(tower.layers)} layers, {len(known)} of {len(attentions)} attentions with heads"
            checks.append(Check("mapped", name, status, detail))
        return checks or [Check("mapped", "", "fail", "no tower was found")]

    def empty(self) -> list[Check]:
        """A session with nothing attached changes no bit."""
        with attach(self.model):
            inside = self.run()
        return [self.exact("empty session", "", inside)]

    def identity(self, tower: Tower, site: str) -> list[Check]:
        """Times one, at every layer of a tower, changes no bit."""
        where = f"{tower.name} {site}"
        one = Intervention(getattr(sites, site)(tower=tower.name), ops.Scale(1.0))
        try:
            with attach(self.model, one):
                inside = self.run()
        except NeverFiredError:
            return [Check("identity", where, "skip", "these inputs do not reach it")]
        except SteerError as error:
            return [Check("identity", where, "skip", f"not reached: {error}")]
        return [self.exact("identity", where, inside)]

    def restored(self) -> list[Check]:
        """After a session that moved every layer, nothing is left of it."""
        before = state(self.model)
        with attach(self.model, *self._strong()):
            inside = self.run()
        moved = distance(inside, self.plain)
        after = self.exact("restored", "", self.run())
        if moved == 0:
            return [Check("restored", "", "fail", "the session changed nothing, so that nothing can be said")]
        return [after, self.same_state("restored", before)]

    def restored_after_error(self) -> list[Check]:
        """The same after an error inside."""
        before = state(self.model)
        try:
            with attach(self.model, *self._strong()):
                self.run()
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        return [
            self.exact("restored after an error", "", self.run()),
            self.same_state("restored after an error", before),
        ]

    def silence(self) -> list[Check]:
        """An intervention that touches no row ends in an error."""
        tower = next(iter(self.map.towers))
        far = Intervention(sites.resid_out(tower=tower, positions=positions.index(10**6)), ops.Scale(0.0))
        try:
            with attach(self.model, far):
                self.run()
        except NeverFiredError:
            return [Check("silence is an error", tower, "pass", "NeverFiredError")]
        except SteerError as error:
            return [Check("silence is an error", tower, "skip", str(error))]
        return [Check("silence is an error", tower, "fail", "no error for rows that do not exist")]

    def head_edit(self, tower: Tower, layer: Layer, attention: Attention, head: int) -> list[Check]:
        """Times zero at `head_out` is the model whose output projection has that head's columns zeroed."""
        where = f"{tower.name} layer {layer.index} head {head}"
        try:
            edited_weight = _without_head(self.model, attention, head)
        except SteerError as error:
            return [Check("head edit", where, "skip", str(error))]
        edited = self.run(edited_weight)
        zero = Intervention(sites.head_out([layer.index], [head], tower.name), ops.Scale(0.0))
        try:
            with attach(self.model, zero):
                steered = self.run()
        except NeverFiredError:
            return [Check("head edit", where, "skip", "these inputs do not reach it")]
        except SteerError as error:
            return [Check("head edit", where, "fail", str(error))]
        effect, off = distance(edited, self.plain), distance(steered, edited)
        if effect == 0 and off == 0:
            return [Check("head edit", where, "skip", "the output does not depend on this head")]
        # Closer to the edited weights than the tolerance, and than a tenth of what the edit does.
        good = off <= min(self.tolerance, 0.1 * effect)
        detail = f"differs by {off:.1e} of the output, the edit moves it by {effect:.1e}"
        return [Check("head edit", where, "pass" if good else "fail", detail)]

    def cache(self) -> list[Check]:
        """A steered model decodes the same with and without a key-value cache."""
        name = "same with and without cache"
        if not getattr(self.model, "can_generate", lambda: False)() or "text" not in self.map.towers:
            return [Check(name, "", "skip", "the model does not generate")]
        tower = self.map.towers["text"]
        middle = [len(tower.layers) // 2]
        item = Intervention(sites.resid_out(middle, positions=positions.generated()), ops.Scale(0.5))
        scores = []
        for use_cache in (True, False):
            try:
                with attach(self.model, item):
                    made = self._generate(use_cache)
            except SteerError as error:
                return [Check(name, "text", "fail", str(error))]
            except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
                return [Check(name, "text", "skip", f"generate(use_cache={use_cache}) fails: {error}")]
            scores.append(list(made.scores))
        off = distance(*scores)
        status: Status = "pass" if len(scores[0]) == len(scores[1]) and off <= self.tolerance else "fail"
        return [Check(name, "text", status, f"next-token scores differ by {off:.1e}")]

    def _generate(self, use_cache: bool) -> Any:
        return self.model.generate(
            **self.inputs,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            num_beams=1,
            use_cache=use_cache,
            output_scores=True,
            return_dict_in_generate=True,
        )

    def _strong(self) -> list[Intervention]:
        tower = "text" if "text" in self.map.towers else next(iter(self.map.towers))
        return [Intervention(sites.resid_out(tower=tower), ops.Scale(0.5))]


def _without_head(model: nn.Module, attention: Attention, head: int) -> dict[str, torch.Tensor]:
    """The output projection's weight with one head's inputs zeroed, by parameter name; the model keeps its own."""
    path, width = attention.out_proj, attention.value_dim
    if path is None or width is None:
        raise SteerError("it has no output projection")
    module = model.get_submodule(path)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.ndim != 2:
        raise SteerError(f"{path} is a {type(module).__name__}, whose weight cannot be edited")
    edited = weight.detach().clone()
    span = slice(head * width, (head + 1) * width)
    if isinstance(module, nn.Linear):
        edited[:, span] = 0
    elif type(module).__name__ == "Conv1D":
        # transformers' Conv1D keeps (in, out), the transpose of a linear layer.
        edited[span] = 0
    else:
        raise SteerError(f"{path} is a {type(module).__name__}, of which it is not known where its inputs are")
    return {f"{path}.weight": edited}
