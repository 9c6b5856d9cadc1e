"""What the plugin and the reference are both given: a tiny CLIP, texts, pictures, tensors, and the names of these."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import steer
from steer_prompts import _start
from tests.prompts import models
from tests.prompts.reference import clip

CLASSES = models.CLASSES
LABELS = torch.tensor([0, 2, 3, 1, 2])
PICTURES = models.pictures(len(LABELS))
TEMPLATES = ["a photo of a {}.", "the big {}.", "a bad drawing of the {}."]
DEPTHS: dict[str, Any] = {"text_depth": 3, "vision_depth": 3}

# Every preset; a second name after a dash is another shape of the same.
OPTIONS: dict[str, dict[str, Any]] = {
    "zero_shot": {},
    "zero_shot-ensemble": {"templates": TEMPLATES},
    "coop": {},
    "coop-middle": {"context": 3, "class_position": "middle"},
    "coop-front-specific": {"context": 3, "class_position": "front", "class_specific": True},
    "coop-middle-specific": {"context": 4, "class_position": "middle", "class_specific": True},
    "cocoop": {"bottleneck": 4},
    "maple": DEPTHS,
    "coprompt": DEPTHS,
    "kgcoop": {"templates": TEMPLATES},
    "prograd": {"context": 4, "templates": TEMPLATES},
    "vpt": {"vision_context": 5, "vision_depth": 3},
    "vpt-ensemble": {"vision_context": 5, "vision_depth": 3, "templates": TEMPLATES},
    "ivlp": DEPTHS,
    "promptsrc": {**DEPTHS, "templates": TEMPLATES},
    "clip_adapter": {},
    "clip_adapter-ensemble": {"templates": TEMPLATES},
    "tip_adapter": {},
}
LEARNING = [name for name in OPTIONS if not name.startswith(("zero_shot", "tip_adapter"))]


@dataclass(frozen=True)
class Subject:
    """A tiny CLIP in one dtype; the reference has the same weights, rounded alike, in fp32 at least.

    Attributes:
        model, processor: of transformers.
        clip: the reference's.
        images: (B, 3, H, W) of `PICTURES`, for the reference.
    """

    model: Any
    processor: Any
    clip: clip.Clip
    images: Tensor

    def pixels(self, pictures: list[Any]) -> Tensor:
        """(B, 3, H, W) as the model is given them, for the reference."""
        return models.pixels(pictures)["pixel_values"].to(self.model.dtype).to(self.images.dtype)

    def ids(self, template: str) -> Tensor:
        """(K, 24) ids of a template with the classes' names, every slot kept as the authors keep all 77."""
        texts = [template.format(name) for name in CLASSES]
        return self.processor.tokenizer(
            texts, padding="max_length", max_length=models.SLOTS, padding_side="right", return_tensors="pt"
        )["input_ids"]

    def written(self, template: str) -> Tensor:
        """(K, P) features of hand-written texts."""
        return clip.encode_text(self.clip, self.ids(template))


def subject(dtype: torch.dtype, scale: float = 10.0) -> Subject:
    """Every weight is random, norms and biases too; the scores are cosines times `scale`."""
    model, processor = models.build("clip")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, one in model.double().named_parameters():
            if one.ndim == 1:
                one.add_(0.1 * torch.randn(one.shape, generator=generator, dtype=torch.float64))
            elif name == "logit_scale":
                one.copy_(torch.tensor(scale, dtype=torch.float64).log())
    model = model.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    weights = {name: value.to(wide) for name, value in model.state_dict().items()}
    images = models.pixels(PICTURES)["pixel_values"].to(dtype).to(wide)
    return Subject(model, processor, clip.Clip(weights, text_heads=4, vision_heads=3), images)


def preset(name: str) -> steer.Method:
    """The preset with the options of its row, not fitted."""
    return steer.create(name.partition("-")[0], classes=CLASSES, **OPTIONS[name])


def tensors(method: Any, stream: steer.TwoStream, dtype: torch.dtype, seed: int = 2) -> dict[str, Tensor]:
    """Learned tensors of the shapes that the method starts with, all of them different and large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    shapes = _start.initial(method, stream, torch.Generator())
    return {
        name: (0.6 if "adapter" in name else 0.3)
        * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, value in shapes.items()
    }


def bound(name: str, one: Subject, dtype: torch.dtype) -> Any:
    """The preset on a model, as if it had learned `tensors`; Tip-Adapter has the pictures as its cache."""
    method = preset(name)
    stream = steer.TwoStream(one.model, one.processor)
    method.tensors, method.fitted_classes = tensors(method, stream, dtype), list(CLASSES)
    if method.cache:
        keys = clip.unit(clip.encode_image(one.clip, one.images)).to(dtype)
        method.tensors |= {"cache.keys": keys, "cache.labels": LABELS}
    return method.bind(one.model, one.processor)


_FLAT = {"context": "ctx"}
_FLAT |= {f"meta.{i}.{part}": f"meta_net.linear{i + 1}.{part}" for i in (0, 1) for part in ("weight", "bias")}
_FLAT |= {"vision.0": "vpt", "image_adapter.0.weight": "fc.0.weight", "image_adapter.1.weight": "fc.2.weight"}


def renamed(method: Any, name: str) -> str:
    """The authors' name of a learned tensor."""
    if method.coupled:
        return _coupled(name)
    kind, _, number = name.partition(".")
    if name not in _FLAT and kind in ("text", "vision"):
        return f"deep_{kind}.{int(number) - 1}"
    return _FLAT[name]


def _coupled(name: str) -> str:
    kind, _, rest = name.partition(".")
    if kind.endswith("_adapter"):
        return f"adapter_{kind.removesuffix('_adapter')}.fc.{2 * int(rest[0])}.weight"
    part = re.sub(r"^\d+", lambda found: str(int(found[0]) - 1), rest)
    if kind == "context":
        return "prompt_learner.ctx"
    if kind == "text":
        return f"prompt_learner.compound_prompts_text.{part}"
    return f"prompt_learner.{f'proj.{rest[2:]}' if rest.startswith('0.') else f'compound_prompt_projections.{part}'}"


def learned(method: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the authors' names."""
    return {renamed(method, name): value.detach().clone() for name, value in given.items()}
