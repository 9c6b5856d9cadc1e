"""The one method behind every preset: prompts and adapters for a model that scores pictures against texts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self
from weakref import WeakValueDictionary

import torch

from steer import Intervention, Method, SteerError, TwoStream, attach
from steer.model_map import ModelMap
from steer.session import open_sessions
from steer.training import Options

from . import _check, _encode, _explain, _parts, _prompts, _start
from ._explain import Explanation
from ._pictures import listed
from .predictions import Predictions

Regulariser = Literal["none", "knowledge", "consistency", "self_regulation", "aligned_gradient"]


@dataclass(kw_only=True)
class PromptLearner(Method):
    """Learned prompts, feature adapters, or both, on any model with a text and an image half. All parts combine freely.

    The model's weights stay as they are; what is learned is fp32 and a few kilobytes. `fit` binds the method to a model
    and its processor, `bind` does it for one that was loaded.

    Attributes:
        classes: names of the classes; empty takes those of the examples given to `fit`.
        templates: hand-written prompts with a `{}` for the name. They are what an untrained half is given (several are
            averaged), and what the regularisers hold on to.
        context: M, learned vectors before the name of a class, in the space of token embeddings; 0 for none (CoOp).
        init: words whose embeddings the vectors start from; "" for noise of 0.02. Words beyond M stay in the text.
        class_position: where the name stands among the vectors.
        class_specific: vectors of its own for each class.
        conditional: a small network of the picture's feature shifts every vector (CoCoOp).
        bottleneck: how many times narrower that network is inside.
        text_depth: layers of the text tower that get new vectors, the token embeddings included (MaPLe's J).
        vision_context: n, learned vectors beside the patches; 0 for none (VPT). With `coupled`, as many as `context`.
        vision_depth: layers of the vision tower that get new ones.
        coupled: the vision tower's vectors are linear images of the text's (MaPLe).
        image_adapter, text_adapter: how much a bottleneck on the projected feature counts; 0 for none (CLIP-Adapter).
        reduction: how many times narrower the adapters are inside.
        cache: alpha, how much the nearest training pictures count; 0 for none (Tip-Adapter).
        sharpness: beta, how fast that falls with distance.
        regulariser: what keeps the fit near the model it started from: `knowledge` (KgCoOp), `consistency` (CoPrompt),
            `self_regulation` (PromptSRC), `aligned_gradient` (ProGrad).
        weight: how much the regulariser counts.
        fitted_classes: the classes it was fitted on; set by `fit`.
    """

    classes: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    context: int = 0
    init: str = ""
    class_position: Literal["end", "middle", "front"] = "end"
    class_specific: bool = False
    conditional: bool = False
    bottleneck: int = 16
    text_depth: int = 1
    vision_context: int = 0
    vision_depth: int = 1
    coupled: bool = False
    image_adapter: float = 0.0
    text_adapter: float = 0.0
    reduction: int = 4
    cache: float = 0.0
    sharpness: float = 5.5
    regulariser: Regulariser = "none"
    weight: float = 1.0
    fitted_classes: list[str] = field(default_factory=list)

    reads: ClassVar[Literal["examples", "labelled"]] = "labelled"
    fit_options: ClassVar[type | None] = Options
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """The options of `fit` that its authors use, where they differ from CoOp's."""

    def __post_init__(self) -> None:
        self._turn = _parts.Turn()
        self._bound: TwoStream | None = None
        self._given: _prompts.Prompts | None = None
        self._laid_out = ""
        self._texts: _encode.Kept | None = None
        self._made: WeakValueDictionary[int, Intervention] = WeakValueDictionary()
        self.ensemble: torch.Tensor | None = None
        self.first: torch.Tensor | None = None
        self.classes = _encode.names(self.classes)
        _check.check(self)

    @property
    def text_changes(self) -> bool:
        """Whether something is learned inside the text tower."""
        return self.context > 0

    @property
    def vision_changes(self) -> bool:
        """Whether something is learned inside the vision tower, so that features of pictures cannot be kept."""
        return self.vision_context > 0 or self.coupled

    @property
    def vision_count(self) -> int:
        """How many vectors stand beside the patches."""
        return self.context if self.coupled else self.vision_context

    def interventions(self, model_map: ModelMap) -> list[Intervention]:
        """What is written where.

        Raises:
            SteerError: it must be fitted first, or a depth is more than the layers of a tower.
            MappingError: the model does not score pictures against texts, or a tower cannot be given more rows.
        """
        _start.check_depth("text_depth", self.text_depth, model_map.tower("text"))
        if self.vision_changes:
            _start.check_depth("vision_depth", self.vision_depth, model_map.tower("vision"))
        _check.fitted(self)
        made = _parts.interventions(self, model_map, self._turn)
        self._made = WeakValueDictionary({id(one): one for one in made})
        return made

    @property
    def learns(self) -> bool:
        """Whether there is anything to fit."""
        return bool(self.context or self.vision_changes or self.image_adapter or self.text_adapter or self.cache)

    def bind(self, model: torch.nn.Module, processor: Any) -> Self:
        """Lay the prompts of the classes out for a model; `fit` does it by itself.

        Args:
            model: a two-stream model of the shape that it was fitted on.
            processor: its processor.

        Raises:
            MappingError: the model does not score pictures against texts.
            SteerError: no classes, or a prompt is longer than the model can read.
        """
        with _encode.quiet(model):
            stream = TwoStream(model, processor)
        self.check_fits(stream.map)
        self._bind(stream)
        return self

    def _bind(self, stream: TwoStream) -> None:
        if not self.classes:
            raise SteerError(f"method {self.name!r} needs classes: steer.create({self.name!r}, classes=[...])")
        self._own_classes(self.classes)
        if self.text_changes:
            given = _prompts.with_context(stream, self.classes, self.context, self.init, self.class_position)
        else:
            given = _prompts.from_template(stream, self.classes, self.templates[0])
        ensemble = first = None
        if len(self.templates) > 1 and not self.text_changes:
            with _encode.quiet(stream.model):
                ensemble, first = _encode.by_hand(self, stream), _encode.plain_texts(stream, given.inputs)
        # Only now, so that what cannot be laid out leaves the method as it was.
        tensors = {name: value.to(stream.device) for name, value in self.tensors.items()}
        self.tensors = {**tensors, "slots": given.slots} if self.text_changes else tensors
        self._bound, self._given, self._texts = stream, given, None
        self.ensemble, self.first = ensemble, first
        self._laid_out = self._layout()

    def _layout(self) -> str:
        """What the texts of the classes depend on."""
        return repr((self.classes, self.context, self.init, self.class_position, self.templates))

    def _own_classes(self, classes: list[str]) -> None:
        """Raise if there are vectors for each class, and these are others."""
        if not self.class_specific or "context" not in self.tensors:
            return
        count, owners = len(self.tensors["context"]), self.fitted_classes or self.classes
        if classes != owners or len(classes) != count:
            raise SteerError(
                f"method {self.name!r} learned vectors of its own for each of {count} classes; "
                "it has none for others (class_specific=False has)"
            )

    def bound(self) -> TwoStream:
        """The model that the method is bound to.

        Raises:
            SteerError: it is bound to none.
        """
        if self._bound is None:
            raise SteerError(f"method {self.name!r} is not bound to a model: call bind(model, processor), or fit")
        return self._bound

    def prompts_of_classes(self) -> _prompts.Prompts:
        """The text of each class, laid out for the model that the method is bound to."""
        stream = self.bound()
        if self._laid_out != self._layout():
            self._bind(stream)
        assert self._given is not None
        return self._given

    def set_classes(self, classes: Sequence[str]) -> Self:
        """Take other classes from now on; what was learned is kept.

        Raises:
            SteerError: the method has vectors of its own for each class, names appear twice or are empty, or one is
                longer than the model can read. The method is as it was then.
        """
        before, given = self.classes, _encode.names(classes)
        self._own_classes(given)
        self.classes = given
        try:
            if self._bound is not None:
                self._bind(self._bound)
        except BaseException:
            self.classes = before
            raise
        return self

    def inputs(self, images: Sequence[Any]) -> dict[str, Any]:
        """Arguments for a call of the model itself: the classes' prompts, and pictures.

        Inside `steer.attach(model, method)`, `model(**method.inputs(images))` gives the steered scores.
        """
        stream = self.bound()
        return {**self.prompts_of_classes().inputs, **stream.pixels(listed(images)), **stream.streams.options}

    @torch.no_grad()
    def scores(self, images: Sequence[Any], *, batch_size: int = 32) -> torch.Tensor:
        """The steered scores of pictures against the classes, fp32 (B, K) on the model's device.

        Args:
            images: PIL images, or whatever the model's image processor takes.
            batch_size: pictures in one forward.

        Raises:
            SteerError: it must be fitted or bound first; not a list of pictures; or the method is attached already.
        """
        stream, pictures = self.bound(), listed(images)
        _encode.at_least_one("batch_size", batch_size)
        self.prompts_of_classes()
        self.outside(stream.model)
        # What the texts are in another session they are not outside of it.
        alone = not open_sessions(stream.model)
        with _encode.quiet(stream.model), attach(stream.model, self, strict=False, measure="none"):
            with _encode.halves(self._turn):
                texts = None if self.conditional else self._features_of_texts(alone)
                made = [
                    _encode.scores(self, self._turn, stream.image_features(stream.pixels(part)), texts)
                    for part in _encode.parts(pictures, batch_size)
                ]
        return torch.cat(made) if made else torch.zeros(0, len(self.classes), device=stream.device)

    def _features_of_texts(self, keep: bool) -> torch.Tensor:
        """As they are now; computed again where something has changed."""
        if keep and self._texts is not None and self._texts.holds(self):
            return self._texts.features
        made = _encode.texts(self, self._turn)
        self._texts = _encode.Kept.of(self, made) if keep else None
        return made

    def outside(self, model: torch.nn.Module) -> None:
        """Raise if the method is attached to a model already: what it adds would be added twice.

        Raises:
            SteerError: it is.
        """
        for session in open_sessions(model):
            if any(self._made.get(id(one)) is one for one in session.interventions):
                raise SteerError(
                    f"method {self.name!r} is attached to this model by a session that is open; predict and fit attach "
                    "it themselves: call them outside, or the model itself inside"
                )

    def predict(self, images: Sequence[Any], *, batch_size: int = 32) -> Predictions:
        """The likeliest class of each picture, with the probabilities of all.

        Args:
            images: PIL images, or whatever the model's image processor takes.
            batch_size: pictures in one forward.

        Raises:
            SteerError: it must be fitted or bound first.
        """
        probabilities = self.scores(images, batch_size=batch_size).softmax(-1).cpu()
        return Predictions(tuple(self.classes), probabilities)

    def fit(
        self,
        model: torch.nn.Module,
        processor: Any,
        examples: Sequence[Any],
        *,
        seed: int = 0,
        dev: Sequence[Any] | None = None,
        augment: Literal["none", "crop", "rand"] | None = None,
        sentences: Any = None,
        class_batch: int = 128,
        folder: str | os.PathLike[str] | None = None,
        progress: bool = True,
        **options: Any,
    ) -> Self:
        """Learn from labelled pictures.

        Args:
            model: any mapped model that scores pictures against texts; no weight of it changes.
            processor: its processor.
            examples: (picture, class name) pairs, or Examples whose answer is the class name.
            seed: of the start, the order and the perturbations.
            dev: others, by which the best tensors are kept; None keeps the last.
            augment: how training pictures are perturbed in each step: not at all, cropped and flipped, or RandAugment;
                None for the method's own.
            sentences: for `consistency`: more sentences about each class, a mapping from name to list or a JSON file of
                one; None takes the templates.
            class_batch: texts in one forward; more are read in parts, whose insides are computed again for the
                gradient. Changes memory, not the result.
            folder: where checkpoints go; the same call again goes on there.
            progress: show a bar on standard error.
            options: fields of `steer.training.Options`.

        Returns:
            Itself, bound to the model.

        Raises:
            SteerError: an example of a class that is not in `classes`, a class without examples where it needs some, no
                examples.
            MappingError: a tower has no place for what is learned.
        """
        from ._fit import fit

        fit(
            self, model, processor, examples, seed=seed, dev=dev, augment=augment, sentences=sentences,
            class_batch=class_batch, folder=folder, progress=progress, options=options,
        )  # fmt: skip
        return self

    def explain(self) -> Explanation:
        """What was learned: for each vector its layer and slot, for each tensor its shape, and the nearest words."""
        return _explain.explain(self, self.bound())

    def number_of_parameters(self) -> int:
        """How many numbers were fitted."""
        return sum(value.numel() for name, value in self.tensors.items() if name not in _check.NOT_LEARNED)
