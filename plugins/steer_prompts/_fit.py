"""Fitting: what is computed once, and what each step does."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy, normalize

from steer import Example, SteerError, TwoStream, attach
from steer.errors import unknown_name
from steer.training import Job, Options, frozen, identity, run

from . import _encode, _losses, _parts, _start
from ._examples import labelled, sentences_of
from ._pictures import BATCH, Pictures

if TYPE_CHECKING:
    from .learner import PromptLearner

# CoOp's: plain SGD, a first epoch that warms up, then a cosine.
RECIPE: dict[str, Any] = {
    "optimizer": "sgd",
    "schedule": "epochs",
    "lr": 2e-3,
    "epochs": 50,
    "batch_size": 32,
    "weight_decay": 5e-4,
    "max_grad_norm": 0.0,
    "patience": None,
}
AUGMENT = ("none", "crop", "rand")
# What a fit that fails puts back.
STATE = (
    "tensors", "provenance", "classes", "fitted_classes",
    "ensemble", "first", "_bound", "_given", "_texts", "_laid_out",
)  # fmt: skip


def fit(
    method: PromptLearner,
    model: torch.nn.Module,
    processor: Any,
    examples: Sequence[Any],
    *,
    seed: int,
    dev: Sequence[Any] | None,
    augment: str | None,
    sentences: Any,
    class_batch: int,
    folder: str | os.PathLike[str] | None,
    progress: bool,
    options: Mapping[str, Any],
) -> None:
    """`PromptLearner.fit`."""
    chosen = Options.of({**RECIPE, **method.recipe, **options})
    augment = augment if augment is not None else ("rand" if method.regulariser == "consistency" else "none")
    if augment not in AUGMENT:
        raise unknown_name("augment", augment, AUGMENT)
    pairs, held = labelled(examples, "examples"), labelled(dev or [], "dev")
    if not pairs:
        raise SteerError(f"method {method.name!r} needs labelled pictures to fit, got none")
    if not method.learns:
        raise SteerError(f"method {method.name!r} learns nothing: bind(model, processor), then predict")
    if sentences is not None and method.regulariser != "consistency":
        raise SteerError(f"sentences are for regulariser='consistency'; {method.name!r} has {method.regulariser!r}")
    _encode.at_least_one("class_batch", class_batch)
    before = {name: getattr(method, name) for name in STATE}
    method.outside(model)
    with _encode.quiet(model):
        stream = TwoStream(model, processor)
    try:
        method.provenance = {}
        method.classes = method.classes or _encode.names(sorted({label for _, label in pairs}))
        method.fitted_classes = list(method.classes)
        with frozen(model, chosen.gradient_checkpointing):
            start = _start.initial(method, stream, torch.Generator().manual_seed(seed))
            method.tensors = {name: value.to(stream.device) for name, value in start.items()}
            method._bind(stream)
            fitting = _Fitting(method, stream, pairs, held, Pictures(stream, [p for p, _ in pairs], augment, seed))
            fitting.class_batch, fitting.seed = class_batch, seed
            fitting.sentences = sentences_of(method, stream, sentences) if method.regulariser == "consistency" else []
            method._turn.voting = False
            went = fitting.run(chosen, Path(folder) if folder is not None else None, progress) if start else None
            if method.cache:
                fitting.keep_cache()
        method.record_provenance(stream.map, seed, [Example("", label, (image,)) for image, label in pairs])
        method.provenance["classes"] = list(method.classes)
        if went is not None:
            kept = {"steps": went.step, "seconds": round(went.seconds, 3), "history": went.history, "augment": augment}
            method.provenance["training"] = {**dataclasses.asdict(chosen), **kept}
        method._bind(stream)
    except BaseException:
        for name, value in before.items():
            setattr(method, name, value)
        raise
    finally:
        method._turn.voting = True


@dataclass
class _Fitting:
    """One fit."""

    method: PromptLearner
    stream: TwoStream
    pairs: list[tuple[Any, str]]
    held: list[tuple[Any, str]]
    pictures: Pictures
    class_batch: int = _encode.CLASS_BATCH
    seed: int = 0
    sentences: list[torch.Tensor] = field(default_factory=list)
    plain: torch.Tensor | None = None
    known: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.labels = self._numbers([label for _, label in self.pairs], "examples")
        self.held_labels = self._numbers([label for _, label in self.held], "dev")
        self.dev = Pictures(self.stream, [image for image, _ in self.held], "none", 0) if self.held else None
        regulariser = self.method.regulariser
        if regulariser != "none":
            # PromptSRC takes the mean before it normalises.
            self.plain = _encode.by_hand(self.method, self.stream, unit=regulariser != "self_regulation")

    def keep_cache(self) -> None:
        """Tip-Adapter: the pictures' own features, by what was learned before it, are what it knows."""
        plain = self.pictures
        if not plain.plain:
            plain = Pictures(self.stream, plain.images, "none", self.seed)
        batches = list(_encode.parts(range(len(self.pairs)), BATCH))
        kept = [self._kept(plain, rows) for rows in batches]
        with torch.no_grad(), attach(self.stream.model, self.method, strict=False, measure="none"):
            made = [self._images(plain, rows, one) for rows, one in zip(batches, kept, strict=True)]
        features = normalize(_parts.wide(torch.cat(made)), dim=-1)
        self.method.tensors |= {"cache.keys": features, "cache.labels": self.labels}

    def run(self, options: Options, folder: Path | None, progress: bool) -> Any:
        method = self.method
        leaves = {name: value.requires_grad_() for name, value in method.tensors.items() if name not in NOT_FITTED}
        weights = _losses.weights(method.regulariser, method.weight)
        aligned = _losses.AlignedGradient(leaves, method.weight) if method.regulariser == "aligned_gradient" else None

        def before_step(step: int) -> None:
            self.pictures.at(step)
            if aligned is not None:
                aligned.start()

        averaged = method.regulariser == "self_regulation" and not self.held
        # its authors': three quarters through, as wide as a twentieth
        average = _losses.gaussian(options.epochs, 0.75 * options.epochs, options.epochs / 20) if averaged else None
        if not method.text_changes:
            with torch.no_grad():
                self.known = method.ensemble
                if self.known is None:
                    self.known = _encode.texts(method, method._turn, self.class_batch)
            method._turn.classes = None
        job = Job(
            label=method.name,
            learned=leaves,
            size=len(self.pairs),
            open_batch=self.open_batch,
            weights=weights,
            dev_loss=self.dev_loss if self.held else None,
            options=options,
            seed=self.seed,
            folder=folder,
            identity=self._identity(options) if folder is not None else {},
            before_step=before_step,
            backward=aligned and aligned.add,
            after_backward=aligned and aligned.project,
            average=average,
            progress=progress,
        )
        best, went = run(job)
        method.tensors = {**method.tensors, **{name: best[name].to(self.stream.device) for name in leaves}}
        return went

    @contextmanager
    def open_batch(self, numbers: Sequence[int]) -> Iterator[Mapping[str, torch.Tensor]]:
        """The losses of some pictures; the backward pass runs inside."""
        method, turn = self.method, self.method._turn
        plain, kept = self._plain(numbers), self._kept(self.pictures, numbers)
        with attach(self.stream.model, method, strict=False, measure="none"), _encode.halves(turn):
            images = self._images(self.pictures, numbers, kept)
            texts = self._texts(images)
            scores = _encode.scores(method, turn, images, texts, self.class_batch)
            yield _losses.terms(
                _losses.Step(self.labels[list(numbers)], scores, texts, images, **plain), method.regulariser
            )

    def dev_loss(self) -> tuple[float, int]:
        """The sum of the cross-entropy over `dev`, and its size."""
        method, turn, total = self.method, self.method._turn, 0.0
        assert self.dev is not None
        batches = list(_encode.parts(range(len(self.held)), BATCH))
        kept = [self._kept(self.dev, rows) for rows in batches]
        with torch.no_grad(), attach(self.stream.model, method, strict=False, measure="none"), _encode.halves(turn):
            texts = None if method.conditional else self._texts(None)
            for rows, features in zip(batches, kept, strict=True):
                images = self._images(self.dev, rows, features)
                scores = _encode.scores(method, turn, images, texts, self.class_batch)
                total += float(cross_entropy(scores, self.held_labels[list(rows)], reduction="sum"))
        return total, len(self.held)

    def _kept(self, pictures: Pictures, numbers: Sequence[int]) -> torch.Tensor | None:
        """Features by the model as it is, where what is learned starts from them; ask with nothing attached."""
        return None if self.method.vision_changes or not pictures.plain else pictures.features(numbers)

    def _images(self, pictures: Pictures, numbers: Sequence[int], kept: torch.Tensor | None) -> torch.Tensor:
        """Features of the pictures with what is learned, from those that were kept where there are any."""
        return self.stream.image_features(pictures.pixels(numbers)) if kept is None else self._adapted(kept)

    def _adapted(self, features: torch.Tensor) -> torch.Tensor:
        ratio = self.method.image_adapter
        return _parts.adapt(self.method.tensors, "image", ratio, features) if ratio else features

    def _texts(self, images: torch.Tensor | None) -> torch.Tensor:
        """Features of the classes with what is learned, (K, D), or (B, K, D) where they depend on the pictures'."""
        method, turn = self.method, self.method._turn
        if method.conditional:
            assert images is not None
            return _encode.texts_for(method, turn, images, self.class_batch)
        if method.text_changes:
            return _encode.texts(method, turn, self.class_batch)
        assert self.known is not None
        ratio = method.text_adapter
        return _parts.adapt(method.tensors, "text", ratio, self.known) if ratio else self.known

    def _plain(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the model as it is makes of the batch, as far as the regulariser asks."""
        regulariser, texts = self.method.regulariser, self.plain
        if texts is None:
            return {}
        if regulariser == "knowledge":
            return {"plain_texts": texts}
        # The student of CoPrompt sees one view of a picture, its teacher another.
        images = self.pictures.features(numbers, view=int(regulariser == "consistency"))
        if regulariser == "consistency":
            drawn = random.Random(f"{self.seed} sentences {self.pictures.step}").randrange(max(1, len(self.sentences)))
            return {"plain_texts": self.sentences[drawn] if self.sentences else texts, "plain_images": images}
        scores = self.stream.scores(images, texts)
        return {"plain_texts": texts, "plain_images": images, "plain_scores": scores}

    def _numbers(self, labels: Sequence[str], what: str) -> torch.Tensor:
        places = {name: index for index, name in enumerate(self.method.classes)}
        for index, label in enumerate(labels):
            if label not in places:
                raise unknown_name(f"class of {what}[{index}]", label, self.method.classes)
        return torch.tensor([places[label] for label in labels], device=self.stream.device)

    def _identity(self, options: Options) -> dict[str, Any]:
        shown, held = ([Example("", label, (image,)) for image, label in pairs] for pairs in (self.pairs, self.held))
        made = identity(self.method, self.stream.model, self.stream.map, shown, held, self.seed, options)
        sentences = [hashlib.sha256(one.cpu().numpy().tobytes()).hexdigest()[:16] for one in self.sentences]
        return {**made, "augment": self.pictures.augment, "sentences": sentences}


NOT_FITTED = ("slots", "cache.keys", "cache.labels")
