"""What the reference says of a preset of `parity.OPTIONS`: logits, the terms of the loss, and the loss itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.prompts import parity
from tests.prompts.reference import (
    clip,
    clip_adapter,
    cocoop,
    coop,
    coprompt,
    ivlp,
    kgcoop,
    maple,
    prograd,
    promptsrc,
    tip_adapter,
    vpt,
    zero_shot,
)

SYSTEMS = {
    "coop": coop, "cocoop": cocoop, "maple": maple, "coprompt": coprompt, "kgcoop": kgcoop, "prograd": prograd,
    "ivlp": ivlp, "promptsrc": promptsrc,
}  # fmt: skip
# Two vectors start from "a photo" of "a photo of a"; the rest stays in the text as words.
REST = {"maple": "of a ", "ivlp": "of a "}
WRITTEN = {"vpt": vpt, "clip_adapter": clip_adapter}

Learned = Mapping[str, Tensor]


class Truth:
    """One preset on one subject; `learned` has the authors' names throughout.

    Attributes:
        labels: (B,).
        images: (B, 3, H, W) that the student sees; `second` those that the teacher of CoPrompt sees.
        sentences: CoPrompt's, as a template.
    """

    def __init__(self, name: str, method: Any, one: parity.Subject) -> None:
        self.system, _, _ = name.partition("-")
        self.position, self.method, self.one = method.class_position, method, one
        self.labels, self.images, self.second = parity.LABELS, one.images, one.images
        self.sentences = method.templates[0]
        self.clip = one.clip
        with torch.no_grad():
            self.written = zero_shot.text_features(one.clip, [one.ids(t) for t in method.templates])
        if method.context:
            self.ids = one.ids(f"{'a ' * method.context}{REST.get(self.system, '')}{{}}.")

    def logits(self, learned: Learned) -> Tensor:
        """(B, K)."""
        given = (self.clip, self.written, self.images)
        if self.system == "zero_shot":
            return zero_shot.logits(self.clip, [self.one.ids(t) for t in self.method.templates], self.images)
        if self.system == "tip_adapter":
            return tip_adapter.logits(*given, *tip_adapter.cache(self.clip, self.one.images, self.labels, 4))
        if self.system in WRITTEN:
            return WRITTEN[self.system].logits(*given, learned)
        where = (self.position,) if self.system in ("coop", "kgcoop", "prograd") else ()
        return SYSTEMS[self.system].logits(self.clip, self.ids, self.images, learned, *where)

    def loss(self, learned: Learned) -> Tensor:
        """What is stepped along, a scalar; not for ProGrad, which steps along no loss."""
        if self.system in WRITTEN:
            return WRITTEN[self.system].loss(self.clip, self.written, self.images, self.labels, learned)
        given = (self.clip, self.ids, self.images, self.labels, learned)
        if self.system == "coop":
            return coop.loss(*given, self.position)
        if self.system == "kgcoop":
            return kgcoop.loss(*given, self.written)
        if self.system == "coprompt":
            return coprompt.loss(*given, self.one.written(self.sentences), self._frozen(self.second))
        if self.system == "promptsrc":
            return promptsrc.loss(*given, self._teacher())
        return SYSTEMS[self.system].loss(*given)

    def terms(self, learned: Learned) -> dict[str, Tensor]:
        """Each term of the loss by the plugin's name for it, before it is weighted."""
        made = {"ce": F.cross_entropy(student := self.logits(learned), self.labels)}
        if self.system == "kgcoop":
            made["knowledge"] = kgcoop.penalty(coop.text_features(self.clip, self.ids, learned), self.written)
        elif self.system == "prograd":
            # What the authors call KL is larger by the teacher's entropy.
            p = (teacher := self.zero_shot()).softmax(-1)
            entropy = -(p * p.log()).sum(-1).mean()
            made["kl"] = prograd.distance(student, teacher, 1.0) - entropy
        elif self.system == "coprompt":
            features = coprompt.features(self.clip, self.ids, self.images, learned)
            seen = self._frozen(self.second), self.one.written(self.sentences)
            made["consistency"] = coprompt.consistency(*features, *seen)
        elif self.system == "promptsrc":
            features = ivlp.features(self.clip, self.ids, self.images, learned)
            seen = self._frozen(self.images), self._teacher()
            plain = clip.similarity(self.clip, *seen)
            made["self_regulation"] = promptsrc.regulariser(*features, *seen, student, plain)
        return made

    def zero_shot(self) -> Tensor:
        """(B, K) of the model as it is."""
        return clip.similarity(self.clip, self._frozen(self.images), self.written)

    def _frozen(self, images: Tensor) -> Tensor:
        return clip.encode_image(self.clip, images)

    def _teacher(self) -> Tensor:
        return promptsrc.teacher_texts([self.one.written(template) for template in self.method.templates])
