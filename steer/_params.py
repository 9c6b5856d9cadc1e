"""Parameters of ops and gates: which slice belongs to one layer, and where and when it is made ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from steer_kernels import best

from .errors import InterventionError

Number = float | int | torch.Tensor


@dataclass(frozen=True)
class Slot:
    """One layer's place in an intervention, from which an op takes its slice of each parameter.

    Attributes:
        where: the address in words, for errors.
        place: this layer's place among the layers of the intervention.
        layers: how many layers the intervention has.
        heads: how many heads are chosen here, or None at a site without heads.
        width: the last dimension of the tensor at this site.
        held: where a model is spread over processes, how many heads are chosen in all, and which of those are here;
            parameters are given for all of them.
    """

    where: str
    place: int
    layers: int
    heads: int | None
    width: int | None
    held: tuple[int, Sequence[int]] | None = None

    def take(self, name: str, value: Number, unit: int, last: int | None = None) -> torch.Tensor:
        """This layer's slice of a parameter.

        Args:
            name: the parameter's name, for errors.
            value: a number or a tensor whose trailing `unit` dimensions are one head's (or row's) value. Before them
                may stand (heads,) and (layers, heads) at a head site, (layers,) elsewhere.
            unit: 0 for a scalar, 1 for a vector, 2 for a matrix.
            last: what the first unit dimension must be, where that is known.

        Returns:
            At a head site (H or 1, *unit); elsewhere (*unit).

        Raises:
            InterventionError: the shape fits neither.
        """
        tensor = value if isinstance(value, torch.Tensor) else torch.tensor(float(value), dtype=torch.float64)
        if not tensor.is_floating_point():
            tensor = tensor.float()
        leading = tuple(tensor.shape[: tensor.ndim - unit]) if tensor.ndim >= unit else None
        chosen = self.heads if self.held is None else self.held[0]
        allowed: list[tuple[int, ...]] = [()]
        if chosen is None:
            allowed.append((self.layers,))
        else:
            allowed += [(chosen,), (self.layers, chosen), (self.layers, 1)]
        fits = leading in allowed and (unit == 0 or last is None or tensor.shape[tensor.ndim - unit] == last)
        if not fits:
            shapes = " or ".join(str([*lead, *([last or "?"] * min(unit, 1)), *["r"] * (unit - 1)]) for lead in allowed)
            raise InterventionError(f"{name} has shape {list(tensor.shape)} at {self.where}; expected {shapes}")
        per_layer = leading is not None and len(leading) == (1 if self.heads is None else 2)
        if per_layer:
            tensor = tensor[self.place]
        if self.heads is not None and (leading == () or leading is None):
            tensor = tensor.unsqueeze(0)
        return tensor if self.held is None else self._here(tensor)

    def _here(self, tensor: torch.Tensor) -> torch.Tensor:
        """The heads in this process, of (all chosen ones or 1, *unit)."""
        assert self.held is not None
        chosen, here = self.held
        return tensor[list(here)] if chosen > 1 and tensor.shape[0] == chosen else tensor


class Ready:
    """A tensor computed from parameters: once and for good when nothing trains, at every use when something does.

    With the name of a kernel, `kernel` is its implementation for the device that `on` was last asked for.
    """

    __slots__ = ("_cached", "_device", "_dtype", "_make", "_name", "_trains", "kernel")

    def __init__(self, make: Callable[[], torch.Tensor], *sources: Number, kernel: str | None = None) -> None:
        self._make, self._name = make, kernel
        self.kernel: Callable[..., torch.Tensor]
        self._trains = any(isinstance(s, torch.Tensor) and s.requires_grad for s in sources)
        self._cached: torch.Tensor | None = None
        self._device: torch.device | None = None
        self._dtype: torch.dtype | None = None

    def on(self, x: torch.Tensor) -> torch.Tensor:
        """The tensor on x's device, in fp32, or in fp64 where x is."""
        if self._cached is not None and x.dtype is self._dtype and x.device == self._device:
            return self._cached
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self._name is not None:
            self.kernel = best(self._name, x.device.type)
        made = self._make().to(device=x.device, dtype=dtype)
        if not self._trains:
            self._cached, self._device, self._dtype = made.detach(), x.device, x.dtype
            return self._cached
        return made
