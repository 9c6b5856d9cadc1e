"""The passes over sampled prompts that fill a HeadMap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import fitting, sites
from ..model_map import ModelMap
from ..prompts import Batch, Prompt, encode
from . import patching, shares
from .checkpoint import State
from .head_map import HeadMap

ATTENTION_MEASURES = tuple(f"attention_{name}" for name in shares.NAMES)
_SCALES: dict[str, patching.Scale] = {"indirect_effect": "probability", "ablation": "log_probability"}


@dataclass
class Passes:
    """One profile under way; each pass fills tensors of `state` from where it stands.

    Attributes:
        model, processor, model_map: what is profiled.
        state: what was measured so far.
        clean: prompts with demonstrations.
        corrupted: the same queries after demonstrations that say nothing, for the indirect effect.
        options: `steer.profile`'s, as a HeadMap keeps them.
        batch_size: rows in one forward.
    """

    model: Any
    processor: Any
    model_map: ModelMap
    state: State
    clean: list[Prompt]
    corrupted: list[Prompt]
    options: dict[str, Any]
    batch_size: int

    def run(self, progress: bool) -> None:
        """Everything that is still to be done."""
        steps: dict[str, tuple[int, Callable[[slice], dict[str, torch.Tensor]]]] = {}
        exact = 1 if not self.options["gradient"] else self.batch_size
        wanted = self.options["measures"]
        if set(wanted) & {"indirect_effect", "ablation"}:
            steps["means"] = (self.batch_size, self._results)
        if "indirect_effect" in wanted:
            steps["indirect_effect"] = (exact, lambda part: self._effects("indirect_effect", self.corrupted[part], 1))
        if "ablation" in wanted:
            steps["ablation"] = (exact, lambda part: self._effects("ablation", self.clean[part], -1))
        if "attention" in wanted:
            steps["attention"] = (max(1, self.batch_size // shares.COPIES), self._shares)
        with fitting.progress_bar(progress) as bar:
            for name, (size, step) in steps.items():
                done, total = self.state.done(name), len(self.clean)
                task = bar.add_task(f"profile: {name}", total=total, completed=done)
                while done < total:
                    part = slice(done, min(done + size, total))
                    self.state.add(name, part.stop, step(part))
                    self.state.keep()
                    done = part.stop
                    bar.update(task, completed=done)

    def _encoded(self, prompts: list[Prompt]) -> Batch:
        return encode(self.model, self.processor, prompts, template=self.options["template"])

    def _results(self, part: slice) -> dict[str, torch.Tensor]:
        site = sites.head_out(attention=self.options["attention"])
        found = fitting.states(self.model, [self._encoded(self.clean[part])], site)
        return {f"sum.{key.layer}": rows.double().sum(0) for key, rows in found.items()}

    def _means(self) -> dict[int, torch.Tensor]:
        sums = {int(name[4:]): value for name, value in self.state.tensors.items() if name.startswith("sum.")}
        return {layer: (sums[layer] / len(self.clean)).float() for layer in sorted(sums)}

    def _effects(self, name: str, prompts: list[Prompt], sign: int) -> dict[str, torch.Tensor]:
        means, attention = self._means(), self.options["attention"]
        scale = self.options["scale"] or _SCALES[name]
        batch = self._encoded(prompts)
        if self.options["gradient"]:
            _, gained = patching.first_order(self.model, batch, means, scale, attention)
        else:
            before, after = patching.effects(self.model, batch, means, self.batch_size, attention)
            now, was = after.log_prob.double(), before.log_prob.double()
            gained = (now.exp() - was.exp() if scale == "probability" else now - was)[None]
        return {name: patching.by_layer(sign * gained, means, self._depth)}

    def _shares(self, part: slice) -> dict[str, torch.Tensor]:
        attention = self.options["attention"]
        prompts = self.clean[part]
        batch, bare = self._encoded(prompts), self._encoded([replace(one, shots=()) for one in prompts])
        shown, image = shares.places(self.model, batch, bare, attention)
        targets = self.model_map.targets(sites.head_v(attention=attention))
        layers = [one.layer.index for one in targets if one.attention is not None and one.attention.out_proj]
        found = shares.shares(self.model, batch, shown, image, layers, attention)
        table = torch.full((len(prompts), 3, self._depth, max(rows.shape[-1] for rows in found.values())), torch.nan)
        for layer, rows in found.items():
            table[:, :, layer, : rows.shape[-1]] = rows
        return dict(zip(ATTENTION_MEASURES, table.unbind(1), strict=True))

    @property
    def _depth(self) -> int:
        return len(self.model_map.tower().layers)

    def head_map(self) -> HeadMap:
        """Means and standard errors over samples."""
        order = ("indirect_effect", "ablation", *ATTENTION_MEASURES)
        tables = {name: self.state.tensors[name] for name in order if name in self.state.tensors}
        heads = max(table.shape[-1] for table in tables.values())
        tables = {
            name: torch.nn.functional.pad(table.double(), (0, heads - table.shape[-1]), value=torch.nan)
            for name, table in tables.items()
        }
        return HeadMap(
            values={name: table.mean(0).float() for name, table in tables.items()},
            errors={name: _errors(table) for name, table in tables.items()},
            n=len(self.clean),
            attention=self.options["attention"],
            model_class=self.model_map.model_class,
            fingerprint=self.model_map.fingerprint(),
            options={**self.options, "measures": list(self.options["measures"])},
        )


def _errors(table: torch.Tensor) -> torch.Tensor:
    """Standard errors of the means over samples (n, L, H); NaN where one sample tells none."""
    if len(table) < 2:
        return torch.full(table.shape[1:], torch.nan)
    return (table.std(0) / len(table) ** 0.5).float()
