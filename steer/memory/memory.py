"""`Memory`: what a model read, kept as keys and values, some of them dropped, to be asked about again and again."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any, NamedTuple, NoReturn, Self

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..errors import InterventionError, MappingError
from ..examples import Example
from ._asking import check_padding, placed, question_of
from ._binding import bind, unbound
from ._helping import masks, masks_of
from ._state import (
    clear_deltas,
    copied,
    everything_kept,
    image_tokens,
    is_pictures,
    joined_shapes,
    nbytes_of,
    repeat,
    take_deltas,
)
from ._whole import own, shares_of, whole
from .kept import Kept, pick
from .layer import KeptLayer
from .pruning import prunable


class Rows(NamedTuple):
    """A memory's tokens and mask (B, length) and rope deltas (B, 1) or None, for a batch of B."""

    tokens: torch.Tensor
    mask: torch.Tensor
    rope_deltas: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Memory:
    """A context that a model has read. It is never changed: reading on and pruning make new ones.

    Once it is bound to its model, `model.generate(**inputs, past_key_values=memory)` works any number of times; the
    inputs are the question alone or the whole sequence. One row of memory serves any batch.

    Attributes:
        model_class: name of the model's class.
        fingerprint: of the model's map.
        layers: what each layer of the cache holds: `Kept`, or transformers' own layer where it cannot be pruned.
        places: the text tower's layers that can be pruned, with their place in `layers`.
        length: how many tokens were read, dropped ones included.
        tokens: their ids, (B, length).
        mask: bool (B, length), false at padding.
        images: bool (B, length), true at image tokens.
        rope_deltas: (B, 1) for models with positions in several dimensions; else None.
        shapes: of the pictures' tensors, so that they are known again at the front of a whole sequence's.
        info: what made it: method, options, certificate.
    """

    model_class: str
    fingerprint: Mapping[str, Any] = field(repr=False)
    layers: tuple[Kept | Any, ...] = field(default=(), repr=False)
    places: Mapping[int, int] = field(default_factory=dict, repr=False)
    length: int = 0
    tokens: torch.Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.long), repr=False)
    mask: torch.Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.bool), repr=False)
    images: torch.Tensor = field(default_factory=lambda: torch.zeros(1, 0, dtype=torch.bool), repr=False)
    rope_deltas: torch.Tensor | None = field(default=None, repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    info: Mapping[str, Any] = field(default_factory=dict)
    _bound: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def empty(cls, model: nn.Module) -> Memory:
        """The memory of a model that has read nothing.

        Raises:
            MappingError: the model keeps no cache of what it reads: its context goes through an encoder.
        """
        from ..session import map_of

        model_map = map_of(model)
        if getattr(model.config, "is_encoder_decoder", False) or "text_encoder" in model_map.towers:
            raise MappingError(
                f"{type(model).__name__} reads its context in an encoder, which keeps no cache; a memory is of what a "
                "decoder has read. Its decoder's cache can be pruned with steer.memory.prune"
            )
        return cls(type(model).__name__, model_map.fingerprint())

    def read(self, model: nn.Module, inputs: Mapping[str, Any], **options: Any) -> Memory:
        """The memory that goes on with these inputs, nothing of them dropped (unless a session prunes).

        Args:
            model: the one that this memory is of.
            inputs: of the next part alone, as a processor makes them: `input_ids` (B, S), pictures, and so on.
            options: for the model's forward.
        """
        from .._teacher_forcing import keep_logits

        before = clear_deltas(model)
        with torch.no_grad(), masks(model):
            question, _ = question_of(self, inputs, alone=True)
            check_padding(self, question, None)
            own = question.get("attention_mask")
            padded = own is not None and not bool(own.bool().all())
            here = placed(model, self, question, generating=False) if self.length or padded else dict(question)
            cache = self.cache(here["input_ids"].shape[0], model)
            model(**here, past_key_values=cache, use_cache=True, **{**keep_logits(model, 1), **options})
            deltas = take_deltas(model, before, here["input_ids"].shape[0])
        return self._grown(model, cache, question, deltas)

    def _grown(self, model: nn.Module, cache: Any, inputs: Mapping[str, Any], deltas: torch.Tensor | None) -> Memory:
        ids = inputs["input_ids"]
        held = self.rows(ids.shape[0])
        own = inputs.get("attention_mask")
        own = torch.ones_like(ids) if own is None else own
        mask = torch.cat([held.mask.to(ids.device), own.bool()], dim=1)
        places = prunable(model, cache)
        layers = [
            everything_kept(layer, mask) if i in places.values() else layer for i, layer in enumerate(cache.layers)
        ]
        for index, share in shares_of(model).items():
            if index in places:
                layers[places[index]] = whole(layers[places[index]], share)
        pictures = {n: tuple(t.shape) for n, t in inputs.items() if is_pictures(t, ids.shape)}
        return replace(
            self,
            layers=tuple(layers),
            places=places,
            length=self.length + ids.shape[1],
            tokens=torch.cat([held.tokens.to(ids.device), ids], dim=1),
            mask=mask,
            images=torch.cat([self._images(ids.shape[0]).to(ids.device), image_tokens(model, inputs)], dim=1),
            rope_deltas=deltas,
            shapes=joined_shapes(self.shapes, pictures),
        )

    def keep(self, keep: Mapping[int, torch.Tensor]) -> Memory:
        """The memory that holds only some tokens of some layers.

        Args:
            keep: bool (B, H_kv, n) for layers of the text tower, n what the layer holds now.

        Raises:
            InterventionError: a layer cannot be pruned, or a selection does not fit.
        """
        missing = sorted(set(keep) - set(self.places))
        if missing:
            raise InterventionError(
                f"layers {missing} cannot be pruned; those of this memory are {sorted(self.places)}"
            )
        layers = list(self.layers)
        for index, chosen in keep.items():
            kept: Kept = layers[self.places[index]]
            keys, values = kept.dense(None)
            chosen = chosen if kept.valid is None else chosen & kept.valid
            layers[self.places[index]] = pick(keys, values, kept.slots, chosen)
        return replace(self, layers=tuple(layers))

    def kept(self, layer: int) -> Kept:
        """What a layer of the text tower holds."""
        made: Kept = self.layers[self.places[layer]]
        return made

    def cache(self, batch: int | None = None, model: nn.Module | None = None) -> DynamicCache:
        """A cache that goes on from here, for one use: transformers writes to it, never to this memory.

        Args:
            batch: how many rows will go on; a multiple of this memory's. None: as many as it has.
            model: the one that will run on it, inside `steer.memory.masks(model)`; None: the one this is bound to.
        """
        helper = self._bound.get("helper") if model is None else masks_of(model)
        if not self.layers and model is not None:
            config: Any = model.config
            return DynamicCache(config=config.get_text_config(decoder=True))
        made: Any = DynamicCache()
        made.layer_class_to_replicate = None
        alike = self._alike()
        repeats = 1 if batch is None else self._repeats(batch)
        shares = self._bound.get("shares", {}) if model is None else shares_of(model)
        spread = {self.places[index]: share for index, share in shares.items() if index in self.places}
        for place, layer in enumerate(self.layers):
            layer = own(layer, spread[place]) if place in spread else layer
            here = KeptLayer(layer, self.length, helper, alike) if isinstance(layer, Kept) else copied(layer)
            if repeats > 1:
                repeat(here, repeats, self.tokens.shape[0])
            made.layers.append(here)
        made.steer_begins = (self.length, self.images.repeat_interleave(repeats, 0))
        return made

    def rows(self, batch: int) -> Rows:
        """Tokens, mask and rope deltas for a batch."""
        repeats = self._repeats(batch)
        deltas = None if self.rope_deltas is None else self.rope_deltas.repeat_interleave(repeats, 0)
        return Rows(self.tokens.repeat_interleave(repeats, 0), self.mask.repeat_interleave(repeats, 0), deltas)

    def bind(self, model: nn.Module) -> Self:
        """Let `past_key_values=memory` work on a model until `unbind`, or until this memory is no longer used.

        The model gets light hooks that look at nothing but the cache that is given; other caches pass untouched.

        Raises:
            FingerprintError: the memory is of another model.
        """
        from ..method import check_fingerprint
        from ..session import map_of

        check_fingerprint("this memory", self.fingerprint, map_of(model))
        self.unbind()
        self._bound.update(release=bind(self, model), helper=masks_of(model), shares=shares_of(model))
        weakref.finalize(self, self._bound["release"])
        return self

    def unbind(self) -> None:
        """Take the hooks back."""
        release: Callable[[], None] | None = self._bound.pop("release", None)
        self._bound.pop("helper", None)
        self._bound.pop("shares", None)
        if release is not None:
            release()

    @property
    def is_bound(self) -> bool:
        """Whether some model takes this as `past_key_values`."""
        return "release" in self._bound

    def ask(
        self,
        model: Any,
        processor: Any,
        queries: Sequence[Example],
        *,
        template: str | None = None,
        batch_size: int = 16,
        max_new_tokens: int = 8,
    ) -> list[str]:
        """What the model writes for each query after this memory, greedily, without special tokens and outer spaces.

        Args:
            model: the one that this memory is of.
            processor: its processor or tokenizer.
            queries: what is asked; their answers are not looked at.
            template: the one that the memory was made with; None for the processor's chat template or a plain one.
            batch_size: queries in one forward.
            max_new_tokens: written at most.
        """
        from .reading import ask

        more = {"template": template, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
        return ask(self, model, processor, queries, **more)  # type: ignore[arg-type]

    def save(self, folder: str | os.PathLike[str], processor: Any = None) -> None:
        """Write the memory to a folder, `steer_memory.safetensors` and `steer_memory.json`, while it is on its model.

        Args:
            folder: made if there is none; an interrupted save leaves what was there.
            processor: what made the inputs, or its tokenizer; a digest of its vocabulary is kept for `load`.

        Raises:
            InterventionError: it is not bound, or a tensor or `info` cannot be saved. Nothing is written then.
        """
        from .files import save

        save(self, folder, processor)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        processor: Any = None,
    ) -> Memory:
        """A saved memory, bound to its model. On the CPU its tensors are a map of the file: leave that where it is.

        Where the model is in another dtype than the one that made it, it is cast, with a warning.

        Args:
            folder: what `save` was given.
            model: the one that read it: its shapes, RoPE configuration and, in the same dtype, weights are compared.
            device: where all of it goes; None: each layer to where the model's layer lives.
            processor: what questions will be made with; its vocabulary is compared where one was saved.

        Raises:
            FileFormatError: a file is missing, truncated, damaged or hostile.
            FingerprintError: the memory is of another model or tokenizer; the message names what differs.
        """
        from ._loading import load

        return load(folder, model, device=device, processor=processor)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept, all layers together."""
        return sum(layer.nbytes if isinstance(layer, Kept) else nbytes_of(layer) for layer in self.layers)

    def share(self) -> dict[int, float]:
        """The share of real tokens that each layer kept, a mean over rows and heads."""
        real = self.mask.sum(-1, keepdim=True).clamp_min(1)
        return {i: float((self.kept(i).counts() / real.to(self.kept(i).keys.device)).mean()) for i in self.places}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The logical length, as a cache tells it."""
        return self.length

    def get_mask_sizes(self, *args: Any) -> NoReturn:
        """Only the caches made of a memory are run on."""
        raise unbound("get_mask_sizes")

    def get_query_offset(self, *args: Any) -> NoReturn:
        """Only the caches made of a memory are run on."""
        raise unbound("get_query_offset")

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """A memory is never written to."""
        raise unbound("update")

    def _repeats(self, batch: int) -> int:
        here = self.tokens.shape[0]
        if batch % here:
            raise InterventionError(f"a memory of {here} rows serves batches of a multiple of {here}, not of {batch}")
        return batch // here

    def _alike(self) -> bool:
        kept = [layer for layer in self.layers if isinstance(layer, Kept)]
        widths = {k.width for k in kept}
        if any(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in self.layers):
            # one mask is made for them and for layers that were left whole
            widths |= {self.length}
        return bool(self.mask.all()) and len(widths) == 1 and all(k.valid is None for k in kept)

    def _images(self, batch: int) -> torch.Tensor:
        return self.images.repeat_interleave(self._repeats(batch), 0)


def _refuse(memory: Memory, name: str, value: Any) -> NoReturn:
    raise unbound("generate") if name.startswith("_is_") else FrozenInstanceError(f"cannot assign to field {name!r}")


# `generate` marks a cache that it was given: the first thing that it does to a memory that no model takes
Memory.__setattr__ = _refuse  # type: ignore[method-assign, assignment]
