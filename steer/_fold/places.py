"""Which module's bias moves a branch's output: found by what the modules give in a forward, not by their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .shifts import Shift, refusal


@dataclass
class Bias:
    """What is added to one module's bias: (D,), fp64, on the CPU; and the first intervention that wants it."""

    amount: torch.Tensor
    label: str


def biases(model: nn.Module, shifts: Sequence[Shift], inputs: Mapping[str, Any]) -> dict[str, Bias]:
    """What is added to the bias of which module, by path.

    Raises:
        InterventionError: no bias can take some shift; the message says what stands in the way.
    """
    watched = watch(model, {branch for shift in shifts if not shift.before for branch in shift.branches}, inputs)
    total: dict[str, Bias] = {}
    for shift in shifts:
        path = shift.branches[0] if shift.before else _last(model, shift, watched)
        module = model.get_submodule(path)
        if "bias" not in module._parameters:
            raise refusal(shift.label, f"{path} is a {type(module).__name__}, which has no bias of its own")
        amount = written(model, path, shift.vector) if shift.before else shift.vector
        known = total.get(path)
        if known is None:
            total[path] = Bias(amount, shift.label)
        elif known.amount.shape != amount.shape:
            raise refusal(shift.label, f"its vector has shape {list(amount.shape)} at {shift.where}")
        else:
            known.amount = known.amount + amount
    return total


def _last(model: nn.Module, shift: Shift, watched: Mapping[str, Watch]) -> str:
    found = next((last for branch in shift.branches if (last := watched[branch].last) is not None), None)
    if found is not None:
        return found
    branch = shift.branches[-1]
    if not watched[branch].ran:
        raise refusal(shift.label, f"{branch} does not run on the inputs tried; give inputs= that reach it")
    kind = type(model.get_submodule(branch)).__name__
    raise refusal(
        shift.label,
        f"in {branch} ({kind}) no layer with a bias comes last, so none reaches {shift.where}: a norm or a scale "
        "follows it, or several results are added up, as in a mixture of experts",
    )


class Watch:
    """One module during a forward.

    Attributes:
        ran: whether the forward came by.
        last: path of the module inside it, or itself, that has a place for a bias and whose output is its output.
    """

    def __init__(self) -> None:
        self.ran = False
        self.last: str | None = None
        self._outputs: list[tuple[str, torch.Tensor]] = []

    def part(self, name: str) -> Any:
        """A hook for a module inside, or for the module itself."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                self._outputs.append((name, output))

        return hook

    def whole(self, module: nn.Module, args: Any, output: Any) -> None:
        """The hook for the module's own output."""
        first = output[0] if isinstance(output, tuple | list) else output
        if isinstance(first, torch.Tensor):
            # The same memory: dropout in eval mode and reshapes give their input back.
            same = [
                name for name, y in self._outputs if y.data_ptr() == first.data_ptr() and y.numel() == first.numel()
            ]
            self.last = same[-1] if same else None
        self.ran = True
        self._outputs.clear()


def watch(model: nn.Module, paths: Iterable[str], inputs: Mapping[str, Any]) -> dict[str, Watch]:
    """Run the model once and see, for each module, which part of it has the last word."""
    watched = {path: Watch() for path in paths}
    handles = []
    for path, seen in watched.items():
        branch = model.get_submodule(path)
        for name, module in branch.named_modules(prefix=path):
            if "bias" in module._parameters:
                handles.append(module.register_forward_hook(seen.part(name)))
        # After its parts, so that a branch that is one module is compared with itself.
        handles.append(branch.register_forward_hook(seen.whole))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return watched


def written(model: Any, path: str, heads: torch.Tensor) -> torch.Tensor:
    """What heads' results (H, d_v) become behind the output projection, (D,) in fp64, without its bias.

    The projection is called, never read: it may be quantised or sharded.
    """
    projection = model.get_submodule(path)
    weights = [p for p in projection.parameters() if p.device.type != "meta"]
    home = weights[0].device if weights else model.device
    rows = torch.zeros(2, 1, heads.numel(), dtype=model.dtype, device=home)
    rows[1, 0] = heads.flatten()
    with torch.no_grad():
        zero, one = projection(rows).double().cpu()
    return (one - zero).squeeze(0)
