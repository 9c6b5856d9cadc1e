"""What a profile found: numbers for every head of a model, saved with the model's fingerprint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import FileFormatError, SteerError, unknown_name
from ..files import in_a_folder, write_whole
from ..method import check_fingerprint
from ..session import map_of

FORMAT = "steer-head-map"
FORMAT_VERSION = 1

# A RecursionError is JSON that is nested without end.
_DAMAGE = (SafetensorError, SteerError, AttributeError, LookupError, TypeError, ValueError, OSError, RecursionError)

By = Literal["value", "abs"]


@dataclass(frozen=True, eq=False)
class HeadMap:
    """Numbers for every head of the text tower, by measure.

    Attributes:
        values: by measure fp32 (L, H), the mean over samples; NaN where a layer has no such head.
        errors: by measure fp32 (L, H), the standard error of that mean; NaN also where there was one sample.
        n: how many samples.
        attention: whose heads, "self" or "cross".
        model_class: the profiled model's class.
        fingerprint: the profiled model's, as `ModelMap.fingerprint`.
        options: how the profile was made, plain data.

    Raises:
        SteerError: there is no measure, or the tables are not of one shape.
    """

    values: Mapping[str, torch.Tensor]
    errors: Mapping[str, torch.Tensor]
    n: int
    attention: str = "self"
    model_class: str = ""
    fingerprint: Mapping[str, Any] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {tuple(table.shape) for table in (*self.values.values(), *self.errors.values())}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2 or set(self.values) != set(self.errors):
            raise SteerError(
                "a HeadMap needs for each measure values and errors, all (L, H) of one shape; got values "
                f"{ {name: list(table.shape) for name, table in self.values.items()} } and errors "
                f"{ {name: list(table.shape) for name, table in self.errors.items()} }"
            )

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures."""
        return tuple(self.values)

    def top(self, k: int, measure: str | None = None, by: By = "value") -> list[tuple[int, int]]:
        """The heads with the highest numbers, highest first.

        Args:
            k: how many; fewer where there are no more heads.
            measure: by which; may be left out where there is only one.
            by: "value", or "abs" for those farthest from zero.

        Returns:
            (layer, head) of each; of equals the first in the model comes first.

        Raises:
            UnknownNameError: no such measure, or no such order.
            SteerError: there are several measures and none was named.
        """
        if by not in get_args(By):
            raise unknown_name("order of heads", by, get_args(By))
        table = self.values[self._named(measure)]
        flat = (table.abs() if by == "abs" else table).flatten()
        order = flat.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
        found = [divmod(i, table.shape[1]) for i in order if not flat[i].isnan()]
        return found[: max(0, k)]

    def check_fits(self, model: torch.nn.Module) -> None:
        """Check that the profile is of a model of this shape.

        Raises:
            FingerprintError: it is of another; the message lists the differences.
        """
        check_fingerprint("this profile of heads", self.fingerprint, map_of(model), "profile this model")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, which is there whole or not at all; everything but the tables is JSON in it.

        Raises:
            SteerError: there is no such folder, or an option is no plain data.
        """
        target = in_a_folder(path)
        facts = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "measures": list(self.measures),
            "n": self.n,
            "attention": self.attention,
            "model_class": self.model_class,
            "fingerprint": dict(self.fingerprint),
            "options": dict(self.options),
        }
        try:
            text = json.dumps(facts, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SteerError(f"this profile of heads cannot be saved as JSON: {error}") from error
        tables = {f"values.{name}": table for name, table in self.values.items()}
        tables |= {f"errors.{name}": table for name, table in self.errors.items()}
        whole = {name: table.detach().float().cpu().contiguous() for name, table in tables.items()}
        write_whole(target, save(whole, metadata={FORMAT: text}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileFormatError: the file is missing, damaged, or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[FORMAT])
                tables = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            if facts["format_version"] != FORMAT_VERSION:
                raise FileFormatError(
                    f"{path} has format version {facts['format_version']!r:.50}; this steer reads {FORMAT_VERSION}; "
                    "update steer-vlm"
                )
            names = [str(name) for name in facts["measures"]]
            expected = {f"{kind}.{name}" for kind in ("values", "errors") for name in names}
            if set(tables) != expected or any(table.dtype != torch.float32 for table in tables.values()):
                raise ValueError("its tables are not those that it lists, in float32")
            if any(bool(table.isinf().any()) for table in tables.values()):
                raise ValueError("a table holds infinity")
            return cls(
                values={name: tables[f"values.{name}"] for name in names},
                errors={name: tables[f"errors.{name}"] for name in names},
                n=int(facts["n"]),
                attention=str(facts["attention"]),
                model_class=str(facts["model_class"]),
                fingerprint=dict(facts["fingerprint"]),
                options=dict(facts["options"]),
            )
        except FileFormatError:
            raise
        except _DAMAGE as error:
            raise FileFormatError(f"{path} is not a saved profile of heads, or is damaged: {error}") from error

    def plot(self, path: str | os.PathLike[str], measure: str | None = None) -> None:
        """Write a PNG: heads across, layers down, the first at the bottom.

        Args:
            path: the file to write.
            measure: which; None draws all of them beside each other.

        Raises:
            SteerError: matplotlib is not installed, or there is no such folder.
            UnknownNameError: no such measure.
        """
        from .drawing import draw

        draw(self, in_a_folder(path), self.measures if measure is None else (self._named(measure),))

    def html(self, path: str | os.PathLike[str]) -> None:
        """Write one page that needs nothing else: choose a measure, point at a head, sort the table of heads.

        Raises:
            SteerError: there is no such folder.
        """
        from .page import page

        write_whole(in_a_folder(path), page(self).encode())

    def _named(self, measure: str | None) -> str:
        if measure is None and len(self.values) == 1:
            return self.measures[0]
        if measure is None:
            raise SteerError(f"this profile has several measures; name one: {', '.join(self.measures)}")
        if measure not in self.values:
            raise unknown_name("measure", measure, self.measures, "in this profile")
        return measure
