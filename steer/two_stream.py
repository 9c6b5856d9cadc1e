"""`steer.TwoStream`: the two halves of a CLIP-like model, each run on its own, and its own score of two features."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import normalize

from ._halves import Found, blank, features, idle, stop
from ._inspect.streams import find_streams
from ._streams import streams_of
from .data import opened
from .errors import MappingError, SteerError
from .model_map import ModelMap
from .session import map_of

Side = Literal["text", "image"]
_PROBES = ("a", "b")


class TwoStream:
    """A model that scores pictures against texts by the cosine of two features.

    What its forward makes of two features (a scale, a bias) is measured on the model once, by handing it features that
    are known, and so is whether padding changes a text's feature; neither is read from a config.

    Attributes:
        model, processor: as given.
        map: the model's map.
        streams: how it scores.
        scale, bias: score = scale * cosine + bias.
        pads_matter: a text's feature depends on how far it is padded (SigLIP): then texts are always padded to `slots`.
        slots: tokens that a text can have at most.
    """

    def __init__(self, model: nn.Module, processor: Any, model_map: ModelMap | None = None) -> None:
        """Measure the model; runs it a few times on an empty picture and two short texts.

        Raises:
            MappingError: the model does not score pictures against texts, or not by a cosine.
            SteerError: the processor has no tokenizer or no image processor.
        """
        self.model, self.processor = model, processor
        self.map = model_map if model_map is not None else map_of(model)
        self.streams = self.map.streams or streams_of(self.map, find_streams(model)[1])
        self.tokenizer: Any = getattr(processor, "tokenizer", None)
        if self.tokenizer is None or getattr(processor, "image_processor", None) is None:
            raise SteerError(
                f"a processor with a tokenizer and an image processor is needed, got {type(processor).__name__}; "
                "use AutoProcessor.from_pretrained"
            )
        self.slots = self._count_slots()
        self.pads_matter = False
        weights = list(model.parameters())
        # An offloaded weight is nowhere until it is used.
        self.device = next((one.device for one in weights if one.device.type != "meta"), torch.device("cpu"))
        self.dtype = weights[0].dtype
        with torch.no_grad():
            self._kept = {side: self._keep(tower) for side, tower in (("text", "vision"), ("image", "text"))}
            self.pads_matter = self._measure_pads()
            self.scale, self.bias = self._measure_scores()

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Texts as the text half takes them: ids (K, T) and whatever else the tokenizer gives, padded on the right.

        T is the longest text's, or `slots` where padding matters.

        Raises:
            SteerError: a text is longer than the model can read; the message names it.
        """
        padding = "max_length" if self.pads_matter else "longest"
        plain = self.tokenizer(list(texts))["input_ids"]
        for text, ids in zip(texts, plain, strict=True):
            if len(ids) > self.slots:
                raise SteerError(
                    f"the text {text!r:.80} has {len(ids)} tokens; {self.map.model_class} reads at most {self.slots}"
                )
        given = self.tokenizer(
            list(texts), padding=padding, max_length=self.slots, return_tensors="pt", padding_side="right"
        )
        return {name: value.to(self.device) for name, value in given.items() if isinstance(value, torch.Tensor)}

    def pixels(self, images: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Pictures as the image half takes them, through the model's own image processor, in the model's dtype."""
        given = self.processor.image_processor(images=[opened(image) for image in images], return_tensors="pt")
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in given.items()
            if isinstance(value, torch.Tensor)
        }

    def text_features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The features of texts, (K, D), before they are normalised; sessions and gradients go through."""
        return self._half("text", inputs)

    def image_features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The features of pictures, (B, D), before they are normalised; sessions and gradients go through."""
        return self._half("image", inputs)

    def scores(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """The model's scores, (B, K) in fp32, of features (B, D) with (K, D), or (B, K, D): texts for each picture."""
        wide = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
        one, other = normalize(images.to(wide), dim=-1), normalize(texts.to(wide), dim=-1)
        cosine = one @ other.T if other.ndim == 2 else torch.einsum("bd,bkd->bk", one, other)
        return self.scale * cosine + self.bias

    def call(self, inputs: Mapping[str, Any]) -> Any:
        """The model's own forward on texts and pictures, in the way in which it scores them."""
        return self.model(**inputs, **self.streams.options)

    def _half(self, side: Side, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        method = getattr(self.model, f"get_{side}_features", None)
        if method is not None:
            made = method(**inputs)
            return made if isinstance(made, torch.Tensor) else made.pooler_output
        # A model without such a method is run whole, but for the other half: what that makes of the least was kept, so
        # that no session on it has a part in this.
        other = self.pixels([blank()]) if side == "text" else self.tokens(_PROBES[:1])
        feature = self.streams.text if side == "text" else self.streams.image
        try:
            with features(self.model, feature, stop), idle(*self._kept[side]):
                self.call({**inputs, **other})
        except Found as found:
            return found.feature
        raise MappingError(f"{feature.path} of {self.map.model_class} was not run by its forward")

    def _keep(self, tower: str) -> tuple[nn.Module | None, Any]:
        """The module of a whole half and what it makes of a blank picture or a short text, if it will be asked for."""
        side = "text" if tower == "vision" else "image"
        found = self.map.towers.get(tower)
        first = self.streams.tokens if tower == "text" else found and found.embeddings
        if hasattr(self.model, f"get_{side}_features") or found is None or not first:
            return None, None
        pairs = zip(found.path.split("."), first.split("."), strict=False)
        path = ".".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if not path:
            return None, None
        module, made = self.model.get_submodule(path), []
        handle = module.register_forward_hook(lambda module, args, output: made.append(output))
        try:
            self.call({**self.tokens(_PROBES[:1]), **self.pixels([blank()])})
        finally:
            handle.remove()
        return module, made[0]

    def _count_slots(self) -> int:
        """The positions of the text half, or what the tokenizer says where that is less."""
        config: Any = self.model.config
        config = getattr(config, "text_config", None) or config
        stated = [getattr(config, "max_position_embeddings", None), getattr(self.tokenizer, "model_max_length", None)]
        # tokenizers that do not know say an astronomic number
        known = [int(number) for number in stated if isinstance(number, int | float) and 0 < number < 100_000]
        return min(known, default=512)

    def _measure_pads(self) -> bool:
        """Whether a text's feature changes when it is padded to every slot."""
        short = self.tokens(_PROBES)
        self.pads_matter = True
        whole = self.tokens(_PROBES)
        one, other = self.text_features(short).float(), self.text_features(whole).float()
        tolerance = 1e-4 if self.dtype in (torch.float32, torch.float64) else 3e-2
        return bool((one - other).norm() > tolerance * other.norm())

    def _measure_scores(self) -> tuple[float, float]:
        """What the model makes of equal and of orthogonal features, handed to it in place of its own."""
        width = self.streams.text.width
        texts = torch.eye(2, width, device=self.device, dtype=self.dtype)
        inputs = {**self.tokens(_PROBES), **self.pixels([blank()])}

        def made(image: torch.Tensor) -> torch.Tensor:
            with features(self.model, self.streams.text, lambda x: texts):
                with features(self.model, self.streams.image, lambda x: image):
                    return self.call(inputs)[self.streams.scores].double().flatten()

        equal, apart = made(texts[:1]).tolist()
        mixed = made(3 * texts[:1] + 4 * texts[1:]).tolist()
        scale = equal - apart
        if any(
            abs(got - (scale * cosine + apart)) > 2e-2 * abs(scale)
            for got, cosine in zip(mixed, (0.6, 0.8), strict=True)
        ):
            raise MappingError(
                f"{self.map.model_class} does not score pictures against texts by the cosine of two features"
            )
        return scale, apart
