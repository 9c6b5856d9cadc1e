"""The methods by their papers' names: `PromptLearner` with the parts and the recipe that each is made of.

Hyper-parameters are the authors' for their base-to-new experiments; every field can be changed, and parts combined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from .learner import PromptLearner, Regulariser

A_PHOTO = "a photo of a"


def _recipe(**options: Any) -> Mapping[str, Any]:
    return MappingProxyType(options)


@dataclass(kw_only=True)
class ZeroShot(PromptLearner):
    """Hand-written prompts, one or several averaged (CLIP): nothing is learned."""

    name: ClassVar[str] = "zero_shot"
    paper: ClassVar[str] = "https://arxiv.org/abs/2103.00020"
    summary: ClassVar[str] = "Scores pictures against hand-written prompts, one or an average: the baseline."


@dataclass(kw_only=True)
class CoOp(PromptLearner):
    """Learned context vectors before the name of a class (arXiv:2109.01134)."""

    name: ClassVar[str] = "coop"
    paper: ClassVar[str] = "https://arxiv.org/abs/2109.01134"
    summary: ClassVar[str] = "Learns context vectors in the place of a prompt's words, for CLIP-like models."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=2e-3, epochs=50, batch_size=32)

    context: int = 16


@dataclass(kw_only=True)
class CoCoOp(PromptLearner):
    """Context vectors that the picture shifts through a small network (arXiv:2203.05557)."""

    name: ClassVar[str] = "cocoop"
    paper: ClassVar[str] = "https://arxiv.org/abs/2203.05557"
    summary: ClassVar[str] = "Learns context vectors, and how each picture shifts them."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=2e-3, epochs=10, batch_size=1)

    context: int = 4
    init: str = A_PHOTO
    conditional: bool = True


@dataclass(kw_only=True)
class MaPLe(PromptLearner):
    """Prompts in the layers of both towers, the vision tower's made from the text's (arXiv:2210.03117).

    Its two vectors start from "a photo"; the words "of a" stay in the text, as in the authors' code.
    """

    name: ClassVar[str] = "maple"
    paper: ClassVar[str] = "https://arxiv.org/abs/2210.03117"
    summary: ClassVar[str] = "Learns coupled prompts in several layers of both towers."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=3.5e-3, epochs=5, batch_size=4)

    context: int = 2
    init: str = A_PHOTO
    text_depth: int = 9
    vision_depth: int = 9
    coupled: bool = True


@dataclass(kw_only=True)
class CoPrompt(PromptLearner):
    """MaPLe with two feature adapters, kept consistent with the model as it was (arXiv:2306.01195).

    The authors choose depth, context and weight anew for each data set; these are the most common of theirs.
    """

    name: ClassVar[str] = "coprompt"
    paper: ClassVar[str] = "https://arxiv.org/abs/2306.01195"
    summary: ClassVar[str] = "Learns coupled prompts and adapters, held near the model on other views and sentences."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=3.5e-3, epochs=8, batch_size=4)

    context: int = 4
    init: str = A_PHOTO
    text_depth: int = 12
    vision_depth: int = 12
    coupled: bool = True
    image_adapter: float = 0.1
    text_adapter: float = 0.2
    regulariser: Regulariser = "consistency"
    weight: float = 8.0


@dataclass(kw_only=True)
class KgCoOp(PromptLearner):
    """CoOp whose classes stay near their hand-written prompts (CVPR 2023)."""

    name: ClassVar[str] = "kgcoop"
    paper: ClassVar[str] = "https://arxiv.org/abs/2303.13283"
    summary: ClassVar[str] = "Learns context vectors that keep the classes near their hand-written prompts."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=2e-3, epochs=100, batch_size=128)

    context: int = 4
    init: str = A_PHOTO
    regulariser: Regulariser = "knowledge"
    weight: float = 8.0


@dataclass(kw_only=True)
class ProGrad(PromptLearner):
    """CoOp whose gradient may not go against the zero-shot model's (ICCV 2023)."""

    name: ClassVar[str] = "prograd"
    paper: ClassVar[str] = "https://arxiv.org/abs/2205.14865"
    summary: ClassVar[str] = "Learns context vectors, never against the gradient of the zero-shot predictions."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=2e-3, epochs=50, batch_size=32)

    context: int = 16
    regulariser: Regulariser = "aligned_gradient"


@dataclass(kw_only=True)
class VPT(PromptLearner):
    """Vectors beside the patches in several layers of the vision tower, texts by hand (arXiv:2203.12119)."""

    name: ClassVar[str] = "vpt"
    paper: ClassVar[str] = "https://arxiv.org/abs/2203.12119"
    summary: ClassVar[str] = "Learns vectors beside the patches, in several layers of the vision tower only."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=2.5e-3, epochs=5, batch_size=4)

    vision_context: int = 8
    vision_depth: int = 12


@dataclass(kw_only=True)
class IVLP(PromptLearner):
    """Independent prompts in the layers of both towers: MaPLe without the coupling (arXiv:2210.03117)."""

    name: ClassVar[str] = "ivlp"
    paper: ClassVar[str] = "https://arxiv.org/abs/2210.03117"
    summary: ClassVar[str] = "Learns independent prompts in several layers of both towers."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=2.5e-3, epochs=5, batch_size=4)

    context: int = 2
    init: str = A_PHOTO
    text_depth: int = 12
    vision_context: int = 2
    vision_depth: int = 12


@dataclass(kw_only=True)
class PromptSRC(PromptLearner):
    """IVLP held near the model's own features and scores, and averaged over its epochs (arXiv:2307.06948)."""

    name: ClassVar[str] = "promptsrc"
    paper: ClassVar[str] = "https://arxiv.org/abs/2307.06948"
    summary: ClassVar[str] = (
        "Learns prompts in both towers, held near its own features and scores, averaged over epochs."
    )
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=2.5e-3, epochs=20, batch_size=4)

    context: int = 4
    init: str = A_PHOTO
    text_depth: int = 9
    vision_context: int = 4
    vision_depth: int = 9
    regulariser: Regulariser = "self_regulation"


@dataclass(kw_only=True)
class CLIPAdapter(PromptLearner):
    """A bottleneck on the pictures' features, texts by hand (arXiv:2110.04544)."""

    name: ClassVar[str] = "clip_adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2110.04544"
    summary: ClassVar[str] = "Learns a small bottleneck on the pictures' features, mixed with them."
    recipe: ClassVar[Mapping[str, Any]] = _recipe(lr=2e-3, epochs=50, batch_size=32)

    image_adapter: float = 0.2


@dataclass(kw_only=True)
class TipAdapter(PromptLearner):
    """The nearest training pictures vote beside the hand-written prompts; nothing is trained (arXiv:2207.09519)."""

    name: ClassVar[str] = "tip_adapter"
    paper: ClassVar[str] = "https://arxiv.org/abs/2207.09519"
    summary: ClassVar[str] = "Lets the nearest training pictures vote beside hand-written prompts, without training."

    cache: float = 1.0


PRESETS = (
    ZeroShot, CoOp, CoCoOp, MaPLe, CoPrompt, KgCoOp, ProGrad, VPT, IVLP, PromptSRC, CLIPAdapter, TipAdapter,
)  # fmt: skip
