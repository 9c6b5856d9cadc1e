"""Following a model's forwards, so that each knows which absolute rows it holds.

Light hooks on the model and on what holds a followed tower read the named inputs (`generate` may hand them straight to
an inner model, past the outer forward), and one on the tower knows how many rows come now and how many came before.
`around` frames a call of `generate`, because only it can tell a prompt from what is written after it when an
assistant model or a chunked prefill is at work.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ._caches import cache_of
from ._frame import Frame, no_images
from ._generate import Turn
from .errors import MappingError, SessionError
from .model_map import ModelMap

_INPUTS = ("input_ids", "attention_mask", "mm_token_type_ids", "decoder_input_ids", "decoder_attention_mask")
_HIDDEN = ("inputs_embeds", "hidden_states", "input_ids", "decoder_input_ids", "x")
_WORDS = {"text", "text_encoder"}
_LISTS = (nn.ModuleList, nn.ModuleDict)


class Tracker:
    """The frames of a model's text towers, renewed at every forward."""

    def __init__(self, model: nn.Module, model_map: ModelMap, prompt_length: int | None = None) -> None:
        self._model = model
        self._map = model_map
        self._given_length = prompt_length
        self._inputs: dict[str, Any] = {}
        self._outermost: nn.Module | None = None
        self._suspended: list[tuple[nn.Module, dict[str, Any], dict[str, Frame]]] = []
        self._frames: dict[str, Frame] = {}
        self._generating: Generation | None = None
        self._prompt_length = 0
        self._image: torch.Tensor | None = None
        self.wants_images = False
        self._handles: list[Any] = []
        self._has_encoder = "text_encoder" in model_map.towers

    def install(self, towers: set[str]) -> None:
        """Hook the model and these towers; `remove` undoes it."""
        callers = {tower: _caller(self._model, self._map.tower(tower).path) for tower in towers & _WORDS}
        for module in dict.fromkeys([self._model, *(m for path, _ in callers.values() for m in self._holders(path))]):
            names = _parameters(module)
            self._handles.append(module.register_forward_pre_hook(self._on_inputs(names), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._on_outputs, always_call=True))
        for tower, (_, module) in callers.items():
            parameters = _parameters(module)
            hook = functools.partial(self._on_tower, tower, parameters)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _holders(self, path: str) -> list[nn.Module]:
        """The modules above a tower, outermost first, that take token ids or a mask by name."""
        parts = path.split(".")
        above = [self._model.get_submodule(".".join(parts[:count])) for count in range(1, len(parts))]
        return [m for m in above if not isinstance(m, _LISTS) and set(_INPUTS) & set(_parameters(m))]

    def remove(self) -> None:
        """Take every hook back."""
        while self._handles:
            self._handles.pop().remove()

    def frame(self, tower: str, batch: int, length: int, device: torch.device) -> Frame:
        """The frame of the running forward of a tower; made from the tensor alone where nothing more can be known."""
        kept = self._frames.get(tower)
        if kept is None:
            return Frame(batch, length, device, prompt_length=length)
        return kept

    def _on_inputs(self, names: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is self._outermost:
                # called again before its hooks are done: another stream, whose frames are its own
                self._suspended.append((module, self._inputs, self._frames))
                self._outermost, self._frames = None, {}
            if self._outermost is None:
                self._outermost, self._inputs = module, {}
            given = _named(names, args, kwargs)
            for name in _INPUTS:
                if name not in self._inputs and given.get(name) is not None:
                    self._inputs[name] = given[name]

        return hook

    def _on_outputs(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self._outermost:
            self._outermost, self._inputs = None, {}
            # Under gradient checkpointing the layers run once more in the backward pass and ask again.
            if not torch.is_grad_enabled():
                self._frames.clear()
            if self._suspended:
                self._outermost, self._inputs, self._frames = self._suspended.pop()

    def _on_tower(
        self, tower: str, names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        given = _named(names, args, kwargs)
        hidden = next((given[n] for n in _HIDDEN if isinstance(given.get(n), torch.Tensor)), None)
        if not isinstance(hidden, torch.Tensor):
            raise MappingError(
                f"the {tower} tower was called without a hidden state or token ids; positions are unknown"
            )
        batch, length = hidden.shape[0], hidden.shape[1]
        decoder = tower == "text"
        cache = cache_of(given) if decoder else None
        if cache is None and decoder:
            cache = given.get("cache_params")
        length_of = getattr(cache, "get_seq_length", None)
        offset = int(length_of()) if length_of is not None else 0
        frame = Frame(batch, length, hidden.device, offset)
        frame.padding = self._padding(given, frame, decoder)
        if any(getattr(layer, "unplaced", False) for layer in getattr(cache, "layers", ())):
            raise SessionError(
                "tokens of this cache were dropped, and a session has to know where the others stood: bind the memory, "
                "or stay inside `with steer.memory.masks(model):`"
            )
        # a cache made of a memory says what it began with
        start, image = getattr(cache, "steer_begins", (0, None))
        frame.prompt_length = self._length_of_prompt(frame, start) if decoder else length
        if self.wants_images:
            frame.image = self._image_rows(frame, decoder, start, image)
        self._frames[tower] = frame

    def _padding(self, given: dict[str, Any], frame: Frame, decoder: bool) -> torch.Tensor | None:
        prefix = "decoder_" if decoder and self._has_encoder else ""
        for mask in (given.get("attention_mask"), self._inputs.get(prefix + "attention_mask")):
            if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
                continue
            if mask.shape[0] == frame.batch and mask.shape[1] >= frame.offset + frame.length:
                return mask
        return None

    def _length_of_prompt(self, frame: Frame, start: int) -> int:
        if self._given_length is not None:
            return self._given_length
        run = self._generating
        if run is None:
            if frame.offset == start:
                self._prompt_length = start + frame.length
        elif run.fresh:
            run.fresh = False
            # A cache that was filled before this call holds the prompt's beginning.
            self._prompt_length = run.length if run.length is not None else frame.offset + frame.length
        return self._prompt_length

    def _image_rows(self, frame: Frame, decoder: bool, start: int, before: torch.Tensor | None) -> Any:
        if decoder and self._has_encoder:
            return no_images
        here = self._image_here(frame)
        if not decoder:
            return no_images if here is None else here
        if frame.offset == start:
            self._image = here
            if here is not None and before is not None:
                self._image = torch.cat([before.to(here.device), here], dim=1)
        elif self._image is not None and self._image.shape[0] == frame.batch:
            if here is None:
                here = torch.zeros(frame.batch, frame.length, dtype=torch.bool, device=frame.device)
            self._image = torch.cat([self._image[:, : frame.offset], here], dim=1)
        return no_images if self._image is None else self._image

    def _image_here(self, frame: Frame) -> torch.Tensor | None:
        kinds, ids = self._inputs.get("mm_token_type_ids"), self._inputs.get("input_ids")
        if isinstance(kinds, torch.Tensor) and kinds.shape == (frame.batch, frame.length):
            return (kinds == 1).to(frame.device)
        token = self._map.image_token_id
        if token is not None and isinstance(ids, torch.Tensor) and ids.shape == (frame.batch, frame.length):
            return (ids == token).to(frame.device)
        return None

    def around(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Turn:
        """Know for the length of a call of `generate` what its prompt is."""
        before, self._generating = self._generating, Generation(self._stated_length(args, kwargs))

        def leave() -> None:
            self._generating = before

        return Turn(args, kwargs, leave)

    def _stated_length(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """The prompt's length where the first forward would tell a wrong one: it holds guesses, or only a chunk."""
        config = kwargs.get("generation_config") or getattr(self._model, "generation_config", None)
        names = ("prompt_lookup_num_tokens", "prefill_chunk_size")
        unusual = kwargs.get("assistant_model") is not None or any(
            kwargs.get(n) or getattr(config, n, None) for n in names
        )
        if not unusual:
            return None
        prefix = "decoder_" if self._has_encoder else ""
        ids = kwargs.get(prefix + "input_ids")
        if ids is None and not prefix:
            ids = kwargs.get("inputs_embeds", args[0] if args else kwargs.get("inputs"))
        if not isinstance(ids, torch.Tensor):
            return 1 if prefix else None
        # a mask that is longer than the ids tells of what a cache already holds
        mask = kwargs.get(prefix + "attention_mask")
        return max(int(t.shape[1]) for t in (ids, mask) if isinstance(t, torch.Tensor))


def _named(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(names, args, strict=False)) | kwargs if args else kwargs


def _parameters(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


def _caller(model: nn.Module, path: str) -> tuple[str, nn.Module]:
    """What runs a stack, and its path: the nearest module, from the stack upwards, that has a forward of its own."""
    module = model.get_submodule(path)
    while path and isinstance(module, _LISTS):
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
    return path, module


class Generation:
    """One call of `generate`: whether its first forward is still to come, and the prompt's length if it was stated."""

    __slots__ = ("fresh", "length")

    def __init__(self, length: int | None) -> None:
        self.fresh, self.length = True, length
