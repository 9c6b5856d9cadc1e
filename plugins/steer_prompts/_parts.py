"""What the learned tensors do, as plain functions of them, and the interventions made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear, normalize, one_hot, relu

from steer import Intervention, SteerError, ops, sites
from steer.model_map import ModelMap

if TYPE_CHECKING:
    from .learner import PromptLearner

Tensors = Mapping[str, torch.Tensor]
# A text's feature is the same text's again: bf16 in batches of another size is off by less, other texts by more.
NEAR = 2e-2


@dataclass
class Turn:
    """What the running forward is about; set by whoever runs it.

    Attributes:
        classes: which classes the rows of text are, int64 (R,); None for all of them, in order.
        shifts: what is added to the context of each row, (R, D); None where it does not depend on the picture.
        voting: the cache of training pictures votes; not while something else is learned, because each would vote for
            itself.
        halves: the two halves are run one by one, so that nothing has to be done around a call of the whole model.
        features: of the pictures that were seen last, (B, D), where they are asked for.
        laid: slots whose rows were compared, and the row that all are like, or None: asked once, since the answer is on
            the device.
    """

    classes: torch.Tensor | None = None
    shifts: torch.Tensor | None = None
    voting: bool = True
    halves: bool = False
    features: list[torch.Tensor] = field(default_factory=list)
    laid: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In fp32 at least, whatever the model computes in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def context(method: PromptLearner, turn: Turn) -> torch.Tensor:
    """The context vectors of the rows of text, (M, D) or (R, M, D)."""
    base = method.tensors["context"]
    if method.class_specific and turn.classes is not None:
        base = base[turn.classes.to(base.device)]
    if not method.conditional:
        return base
    if turn.shifts is None:
        raise SteerError(
            f"the context of {method.name!r} depends on the picture: call the model with pictures and texts together, "
            "or use predict"
        )
    return base + turn.shifts.unsqueeze(1)


def slots(method: PromptLearner, turn: Turn) -> torch.Tensor:
    """Where the context stands in the rows of text, (R, M), or (M,) where it is the same in all."""
    kept = method.tensors["slots"]
    if turn.laid[0] is not kept:
        turn.laid = kept, kept[0] if bool((kept == kept[:1]).all()) else None
    if turn.laid[1] is not None:
        return turn.laid[1]
    return kept if turn.classes is None else kept[turn.classes.to(kept.device)]


def meta(tensors: Tensors, features: torch.Tensor) -> torch.Tensor:
    """CoCoOp's Meta-Net: what a picture's feature (B, D) adds to every context vector, (B, D_text)."""
    unit = normalize(features.to(tensors["meta.0.weight"].dtype), dim=-1)
    hidden = relu(linear(unit, tensors["meta.0.weight"], tensors["meta.0.bias"]))
    return linear(hidden, tensors["meta.1.weight"], tensors["meta.1.bias"])


def vision(method: PromptLearner, layer: int) -> torch.Tensor:
    """The vectors beside the patches in one layer, (n, D_vision)."""
    tensors = method.tensors
    if not method.coupled:
        return tensors[f"vision.{layer}"]
    source = tensors["context"] if layer == 0 else tensors[f"text.{layer}"]
    return linear(source, tensors[f"couple.{layer}.weight"], tensors[f"couple.{layer}.bias"])


def adapt(tensors: Tensors, side: str, ratio: float, features: torch.Tensor) -> torch.Tensor:
    """CLIP-Adapter: ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f, on features (..., D) before they are normalised."""
    down, up = tensors[f"{side}_adapter.0.weight"], tensors[f"{side}_adapter.1.weight"]
    given = features.to(down.dtype)
    return (ratio * relu(linear(relu(linear(given, down)), up)) + (1 - ratio) * given).to(features.dtype)


def cached(method: PromptLearner, features: torch.Tensor) -> torch.Tensor:
    """Tip-Adapter: alpha * exp(-beta (1 - f K^T)) V, (B, K); a class that it was not fitted on gets nothing."""
    keys, labels = method.tensors["cache.keys"], method.tensors["cache.labels"]
    affinity = normalize(features.to(keys.dtype), dim=-1) @ keys.T
    known = {name: index for index, name in enumerate(method.fitted_classes)}
    columns = torch.tensor([known.get(name, -1) for name in method.classes], device=labels.device)
    votes = one_hot(labels, len(known)).to(keys.dtype)
    votes = torch.where(columns >= 0, votes[:, columns], 0.0)
    return method.cache * torch.exp(-method.sharpness * (1 - affinity)) @ votes


def interventions(method: PromptLearner, model_map: ModelMap, turn: Turn) -> list[Intervention]:
    """All of them."""
    made: list[Intervention] = []
    if method.context:
        slots(method, turn)  # looked at now, not in a forward
        made.append(_write(sites.token_embeddings(), lambda: context(method, turn), lambda: slots(method, turn)))
    for layer in range(1, method.text_depth):
        place = sites.resid_in(layer)
        made.append(_write(place, lambda layer=layer: method.tensors[f"text.{layer}"], lambda: slots(method, turn)))
    if method.vision_context or method.coupled:
        made += _beside_patches(method, model_map)
    if method.conditional:
        made.append(Intervention(sites.call(), _each_picture(method, model_map, turn)))
    return made + _on_features(method, model_map, turn)


def _write(site: sites.Site, vectors: Any, slots: Any) -> Intervention:
    return Intervention(site, ops.Write(vectors, slots))


def _beside_patches(method: PromptLearner, model_map: ModelMap) -> list[Intervention]:
    """Rows behind the patches, new ones in each layer to the depth; no pooling sees them, they go behind the last."""
    count = method.vision_count
    last = len(model_map.tower("vision").layers) - 1
    made = [Intervention(sites.embeddings("vision"), ops.Append(lambda: vision(method, 0)))]
    end = torch.arange(-count, 0)
    for layer in range(1, method.vision_depth):
        made.append(_write(sites.resid_in(layer, "vision"), lambda layer=layer: vision(method, layer), end))
    return [*made, Intervention(sites.resid_out(last, "vision"), ops.Drop(count))]


def _on_features(method: PromptLearner, model_map: ModelMap, turn: Turn) -> list[Intervention]:
    made = []
    if method.ensemble is not None and not method.text_changes:
        made.append(Intervention(sites.features("text"), ops.Apply(lambda x: _together(method, turn, x))))
    for side, tower, ratio in (("image", "vision", method.image_adapter), ("text", "text", method.text_adapter)):
        if ratio:
            function = lambda x, side=side, ratio=ratio: adapt(method.tensors, side, ratio, x)  # noqa: E731
            made.append(Intervention(sites.features(tower), ops.Apply(function)))
    if method.cache and turn.voting:
        made.append(Intervention(sites.features("vision"), ops.Apply(lambda x: _note(turn, x))))
        made.append(
            Intervention(sites.call(), ops.Around(after=lambda model, out: _vote(method, model_map, turn, out)))
        )
    return made


def _together(method: PromptLearner, turn: Turn, features: torch.Tensor) -> torch.Tensor:
    """The mean feature over the templates, in the place of that of the first; other texts stay as they are."""
    assert method.ensemble is not None
    assert method.first is not None
    whole, first = (
        (one if turn.classes is None else one[turn.classes.to(one.device)]).to(features.device, features.dtype)
        for one in (method.ensemble, method.first)
    )
    if whole.shape != features.shape:
        return features
    own = (features - first).norm(dim=-1, keepdim=True) < NEAR * first.norm(dim=-1, keepdim=True)
    return torch.where(own, whole, features)


def _note(turn: Turn, features: torch.Tensor) -> torch.Tensor:
    turn.features = [features]
    return features


def _vote(method: PromptLearner, model_map: ModelMap, turn: Turn, output: Any) -> Any:
    """Add the cache's votes to the scores of a call of the whole model."""
    if turn.halves or not turn.features or not isinstance(scores := _scores(model_map, output), torch.Tensor):
        return output
    return _put(model_map, output, scores + cached(method, turn.features.pop()).to(scores.dtype))


def _each_picture(method: PromptLearner, model_map: ModelMap, turn: Turn) -> ops.Around:
    """Every text once for each picture in one call of the whole model, and each picture's own scores out of that."""

    def before(model: torch.nn.Module, given: dict[str, Any]) -> dict[str, Any]:
        if turn.halves or given.get("input_ids") is None or given.get("pixel_values") is None:
            return given
        stream, texts = method.bound(), given["input_ids"].shape[0]
        if stream.model is not model:
            raise SteerError(
                f"method {method.name!r} reads pictures with the model it is bound to, which is another than this: "
                "call bind(model, processor) with this one"
            )
        turn.halves = True
        try:
            seen = stream.image_features({k: v for k, v in given.items() if k in _OF_PICTURES})
        finally:
            turn.halves = False
        turn.shifts = meta(method.tensors, seen).repeat_interleave(texts, 0)
        turn.classes = torch.arange(texts, device=seen.device).repeat(len(seen))
        more = {k: v.repeat(len(seen), 1) for k, v in given.items() if k in _OF_TEXTS and v is not None}
        return {**given, **more}

    def after(model: torch.nn.Module, output: Any) -> Any:
        if turn.halves or turn.shifts is None:
            return output
        turn.shifts, turn.classes = None, None
        scores = _scores(model_map, output)
        if not isinstance(scores, torch.Tensor):
            return output
        pictures = torch.arange(scores.shape[0], device=scores.device)
        return _put(model_map, output, scores.reshape(len(pictures), len(pictures), -1)[pictures, pictures])

    return ops.Around(before, after)


_OF_TEXTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_OF_PICTURES = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "interpolate_pos_encoding")


def _scores(model_map: ModelMap, output: Any) -> Any:
    streams = model_map.streams
    return getattr(output, streams.scores, None) if streams is not None else None


def _put(model_map: ModelMap, output: Any, scores: torch.Tensor) -> Any:
    """An output with other scores."""
    streams = model_map.streams
    assert streams is not None
    output[streams.scores] = scores
    if streams.scores_per_text is not None:
        output[streams.scores_per_text] = scores.T
    return output
