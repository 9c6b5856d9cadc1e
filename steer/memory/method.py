"""The base class of methods that make memories of demonstrations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .._config import encode_config
from ..examples import Example
from ..fitting import check, track
from ..method import Method, _describe
from .memory import Memory
from .reading import divergence, together
from .words import Words

if TYPE_CHECKING:
    from ..prompts import Batch

QUESTIONS = 16
"""Questions in one forward."""


@dataclass
class MemoryMethod(Method):
    """A method that reads demonstrations part by part and keeps some of each part."""

    @abstractmethod
    def compress(
        self,
        model: Any,
        before: Memory,
        inputs: Mapping[str, torch.Tensor],
        words: Words,
        shots: Sequence[Example],
        total: int,
    ) -> Memory:
        """Read one more part and keep some of it; what was kept before stays.

        Args:
            model: the model.
            before: the memory so far.
            inputs: of the part.
            words: how questions are written after it.
            shots: the demonstrations in the part.
            total: how many tokens all parts have together.
        """

    def build(
        self,
        model: Any,
        processor: Any,
        demonstrations: Sequence[Example],
        *,
        chunk: int = 4,
        template: str | None = None,
        probes: Sequence[Example] = (),
        certify: bool = True,
        progress: bool = True,
    ) -> Memory:
        """Make a memory of demonstrations, bound to the model.

        Args:
            model: any mapped decoder that keeps a cache.
            processor: its processor or tokenizer.
            demonstrations: shown in this order, with their answers.
            chunk: how many are read at a time; the most that is held is one part and the memory.
            template: how an example is written; None for the processor's chat template or a plain one.
            probes: held-out questions with answers, for the certificate.
            certify: measure how far answers are from those after the whole context, which is read once for it.
            progress: show a bar.

        Raises:
            SteerError: there are no demonstrations, or the model keeps no cache of what it reads.
        """
        check(model, processor, [*demonstrations, *probes], at_least=1, method=self.name)
        words = Words(model, processor, template)
        memory = Memory.empty(model)
        parts = list(enumerate(words.context(demonstrations, chunk)))
        total = sum(inputs["input_ids"].shape[1] for _, inputs in parts)
        for index, inputs in track(parts, f"{self.name}: reading", progress=progress):
            shots = demonstrations[index * chunk : (index + 1) * chunk]
            memory = self.compress(model, memory, inputs, words, shots, total)
        info = {
            **memory.info,
            "method": self.name,
            "config": encode_config(self),
            "demonstrations": _describe(demonstrations),
            "chunk": chunk,
            "template": template,
        }
        if certify:
            whole = read(model, processor, demonstrations, chunk=chunk, template=template)
            info["certificate"] = certificate(model, whole, memory, words, demonstrations, probes)
        return replace(memory, info=info).bind(model)


def read(
    model: Any, processor: Any, demonstrations: Sequence[Example], *, chunk: int = 4, template: str | None = None
) -> Memory:
    """The whole context as a memory: nothing is dropped. Not bound yet."""
    memory = Memory.empty(model)
    for inputs in Words(model, processor, template).context(demonstrations, chunk):
        memory = memory.read(model, inputs)
    return memory


def certificate(
    model: Any,
    whole: Memory,
    memory: Memory,
    words: Words,
    demonstrations: Sequence[Example],
    probes: Sequence[Example] = (),
) -> dict[str, Any]:
    """How far a memory's answers are from those after the whole context: on the demonstrations, and on held-out probes.

    Nothing is added up from bounds of parts: both are measured from end to end.
    """
    made: dict[str, Any] = {
        "calibration": divergence(model, whole, memory, batches(words, demonstrations, whole)).to_dict(),
        "share": {str(layer): share for layer, share in memory.share().items()},
        "nbytes": memory.nbytes,
        "nbytes_whole": whole.nbytes,
    }
    if probes:
        made["held_out"] = divergence(model, whole, memory, batches(words, probes, whole)).to_dict()
    return made


def batches(words: Words, queries: Sequence[Example], memory: Memory | None = None) -> list[Batch]:
    """Questions after a memory, in batches; of one length where a layer would take padding after it for text."""
    rows = together(memory or Memory.empty(words.model), words, queries, QUESTIONS)
    return [words.questions([queries[i] for i in some]) for some in rows]
