"""Two-stream models: which modules make the feature of a picture and of a text, found by following one forward.

The model's twin without weights is run on two pictures and three texts, so that what comes of the ones can be told from
what comes of the others by its first dimension: nothing is decided by a name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..model_map import Feature, Streams
from .ghost import Trace, ghost, mark, probing, roots

IMAGES, TEXTS, TOKENS = 2, 3, 5
_IDS = frozenset({"ids"})
_SEEING = ("vision_config", "image_config")


def find_streams(model: nn.Module) -> tuple[Streams | None, str]:
    """The streams of a model that scores pictures against texts, or None and why they were not found."""
    parameters = inspect.signature(type(model).forward).parameters
    if not {"input_ids", "pixel_values"} <= set(parameters):
        return None, ""
    reason = ""
    for options in _options(parameters):
        try:
            seen = _run(model, parameters, options)
        except Exception as error:  # a model that asks for more than pictures and words may fail in any way
            said = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            reason = reason or f"a forward of {IMAGES} pictures and {TEXTS} texts does not run ({said})"
            continue
        found = seen.streams(options)
        if found is not None:
            return found, ""
        reason = reason or "no output has a score for each picture and text"
    return None, f"streams of pictures and texts: {reason}"


def _options(parameters: Any) -> Iterator[dict[str, bool]]:
    """The forward as it is, then with each switch that is on by default turned off."""
    yield {}
    for name, parameter in parameters.items():
        if parameter.default is True:
            yield {name: False}


@dataclass
class _Seen:
    """What one forward showed: every module's output in the order of returning, tables of words, and the result."""

    outputs: list[tuple[str, str | None, Any]] = field(default_factory=list)
    tables: list[tuple[bool, int, str]] = field(default_factory=list)
    result: Any = None

    def streams(self, options: dict[str, bool]) -> Streams | None:
        text, image = self._feature(TEXTS), self._feature(IMAGES)
        scores, per_text = self._scores((IMAGES, TEXTS)), self._scores((TEXTS, IMAGES))
        if text is None or image is None or scores is None or not self.tables or text.width != image.width:
            return None
        # Positions may be counted from the ids, and then their table is another that the ids reach.
        return Streams(text, image, max(self.tables)[2], scores, per_text, options)

    def _feature(self, count: int) -> Feature | None:
        """The last (count, D) that any module gives, where it first appears."""
        rows = [row for row in self.outputs if _is(row[2], count)]
        if not rows:
            return None
        last = rows[-1][2]
        path, name, x = next(row for row in rows if row[2] is last)
        return Feature(path, name, x.shape[1])

    def _scores(self, shape: tuple[int, int]) -> str | None:
        items = self.result.items() if hasattr(self.result, "items") else ()
        found = [name for name, x in items if isinstance(x, torch.Tensor) and tuple(x.shape) == shape]
        return found[0] if found else None


def _is(x: Any, count: int) -> bool:
    return isinstance(x, torch.Tensor) and x.ndim == 2 and x.shape[0] == count and x.is_floating_point()


def _pooled(output: Any) -> list[tuple[str | None, Any]]:
    if isinstance(output, torch.Tensor):
        return [(None, output)]
    return [("pooler_output", getattr(output, "pooler_output", None))]


def _run(model: nn.Module, parameters: Any, options: dict[str, bool]) -> _Seen:
    trace, configs, seen = Trace(), dict[int, Any](), _Seen()
    twin = ghost(model, trace, configs)
    given = {**_inputs(model, parameters), **options}
    ids = given["input_ids"]

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # now, because what is returned may be written to later
            seen.outputs += [(path, name, x) for name, x in _pooled(output)]
            if isinstance(module, nn.Embedding) and args and "ids" in roots(args[0]) and args[0].shape[:1] == (TEXTS,):
                words = args[0]
                seen.tables.append((words is ids or words._base is ids, module.num_embeddings, path))

        return hook

    for path, module in twin.named_modules():
        if path:
            module.register_forward_hook(note(path))
    with probing(trace, configs):
        if "return_dict" in parameters:
            given["return_dict"] = True
        seen.result = type(twin).forward(twin, **given)
    return seen


def _inputs(model: nn.Module, parameters: Any) -> dict[str, Any]:
    """Two pictures and three texts as the forward takes them, without values."""
    ids = mark(torch.zeros(TEXTS, TOKENS, dtype=torch.long, device="meta"), _IDS, _IDS)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given = {name: value for name, value in given.items() if name in parameters}
    return {**given, **_pictures(model, "spatial_shapes" in parameters)}


def _pictures(model: nn.Module, packed: bool) -> dict[str, torch.Tensor]:
    config: Any = getattr(model, "config", None)
    seeing: Any = next((found for name in _SEEING if (found := getattr(config, name, None))), config)
    channels = getattr(seeing, "num_channels", 3)
    if packed:  # a picture as a list of its patches, with the grid beside it
        side = int(seeing.num_patches**0.5)
        patches = (IMAGES, side * side, channels * seeing.patch_size**2)
        return {
            "pixel_values": torch.zeros(patches, device="meta"),
            "pixel_attention_mask": torch.ones(patches[:2], dtype=torch.long, device="meta"),
            "spatial_shapes": torch.full((IMAGES, 2), side),
        }
    size = seeing.image_size
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    return {"pixel_values": torch.zeros(IMAGES, channels, height, width, device="meta")}
