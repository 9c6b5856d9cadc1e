"""What a method learned, as a table that people read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from steer import TwoStream

from ._check import NOT_LEARNED

if TYPE_CHECKING:
    from .learner import PromptLearner

NEAREST = 3
# Distances to a whole vocabulary that are held at a time.
VECTORS = 256


@dataclass(frozen=True)
class Learned:
    """One learned tensor, or one vector of the context.

    Attributes:
        name: of the tensor.
        where: tower, and what it acts on.
        layer: of the tower; None where it belongs to none. Layer 0 is before the first block.
        slot: where a vector stands: "1" in the texts of all classes, "end-2" behind the patches, "" elsewhere.
        shape, parameters: of the tensor, or of the vector.
        nearest: words whose embeddings are nearest to a vector of the context, with the distance.
    """

    name: str
    where: str
    layer: int | None
    slot: str
    shape: tuple[int, ...]
    parameters: int
    nearest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Explanation:
    """All that was learned; print it for a table."""

    method: str
    rows: tuple[Learned, ...]

    @property
    def parameters(self) -> int:
        """How many numbers in all."""
        return sum(row.parameters for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"method": self.method, "parameters": self.parameters, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        head = ("what", "where", "layer", "slot", "shape", "parameters", "nearest words")
        lines = [head, *(_line(row) for row in self.rows), ("all", "", "", "", "", f"{self.parameters:,}", "")]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def explain(method: PromptLearner, stream: TwoStream) -> Explanation:
    """Every tensor; the context vector by vector."""
    rows: list[Learned] = []
    for name, value in method.tensors.items():
        if name == "context":
            rows += _vectors(method, stream, value)
        elif name not in NOT_LEARNED:
            rows.append(_row(method, name, value))
    return Explanation(method.name, tuple(rows))


def _vectors(method: PromptLearner, stream: TwoStream, value: torch.Tensor) -> list[Learned]:
    slots = method.tensors["slots"]
    made = []
    nearest = nearest_words(stream, value.flatten(0, -2))
    for row, vectors in enumerate(value if value.ndim == 3 else value[None]):
        owner = f"context of {method.fitted_classes[row]!r}" if value.ndim == 3 else "context"
        words = nearest[row * len(vectors) : (row + 1) * len(vectors)]
        for index, vector in enumerate(vectors):
            places = slots[row : row + 1, index] if value.ndim == 3 else slots[:, index]
            low, high = int(places.min()), int(places.max())
            slot = str(low) if low == high else f"{low}-{high}"
            made.append(
                Learned(owner, "text, token embeddings", 0, slot, tuple(vector.shape), vector.numel(), words[index])
            )
    return made


def nearest_words(
    stream: TwoStream, vectors: torch.Tensor, count: int = NEAREST
) -> list[tuple[tuple[str, float], ...]]:
    """For each vector (M, D) the words whose embeddings are nearest by Euclidean distance, as in CoOp."""
    table: Any = stream.model.get_submodule(stream.streams.tokens)
    ids = torch.arange(table.num_embeddings, device=stream.device)
    made = []
    with torch.no_grad():
        words = table(ids[None])[0].float()
        for some in vectors.detach().float().to(words.device).split(VECTORS):
            # Not by matrix products, which leave a distance of 0 at the rounding of the vectors' lengths.
            distances = torch.cdist(some, words, compute_mode="donot_use_mm_for_euclid_dist")
            near, places = distances.topk(min(count, len(ids)), largest=False)
            for row, values in zip(places.tolist(), near.tolist(), strict=True):
                tokens = [stream.tokenizer.decode([one]).strip() for one in row]
                made.append(tuple((token, round(value, 4)) for token, value in zip(tokens, values, strict=True)))
    return made


def _row(method: PromptLearner, name: str, value: torch.Tensor) -> Learned:
    kind, _, rest = name.partition(".")
    shape, count = tuple(value.shape), value.numel()
    if kind == "text":
        return Learned(name, "text, residual stream", int(rest), "as the context", shape, count)
    if kind in ("vision", "couple"):
        layer = int(rest.partition(".")[0])
        where = "vision, beside the patches" if kind == "vision" else "from the text's vectors to the vision tower's"
        return Learned(name, where, layer, f"end-{method.vision_count}", shape, count)
    where = {
        "meta": "from the picture's feature to every context vector",
        "image_adapter": "vision, projected feature",
        "text_adapter": "text, projected feature",
        "cache": "features of the training pictures",
    }[kind]
    return Learned(name, where, None, "", shape, count)


def _line(row: Learned) -> tuple[str, ...]:
    layer = "" if row.layer is None else str(row.layer)
    shape = " x ".join(map(str, row.shape))
    return (
        row.name,
        row.where,
        layer,
        row.slot,
        shape,
        f"{row.parameters:,}",
        ", ".join(f"{w} {d:g}" for w, d in row.nearest),
    )
