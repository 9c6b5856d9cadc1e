"""What looking at one prompt found, as numbers; it draws itself as a picture and as a page."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from ..files import in_a_folder, write_whole

SHARES = ("image", "text", "rest")


@dataclass(frozen=True, eq=False)
class Picture:
    """One of the query's pictures.

    Attributes:
        image: the PIL image, RGB.
        boxes: fp32 (n, 4), left, top, right and bottom of what each of its tokens looks at, in pixels of `image`; zeros
            for a token that sees nothing but padding.
    """

    image: Any = field(repr=False)
    boxes: torch.Tensor = field(repr=False)

    @property
    def seen(self) -> torch.Tensor:
        """Which tokens look at some part of the picture, bool (n,)."""
        return (self.boxes[:, 2] > self.boxes[:, 0]) & (self.boxes[:, 3] > self.boxes[:, 1])

    @property
    def views(self) -> tuple[torch.Tensor, ...]:
        """The tokens, int64 (m,) in order, in as few groups as it takes for none to lie on another, small ones first.

        A picture that is read once is one view; one that is read in tiles and as a thumbnail is two, which cannot be
        drawn on top of each other without mixing their colours.
        """
        sizes = self.boxes[:, 2:] - self.boxes[:, :2]
        areas = sizes.clamp(min=0).prod(-1)
        groups: list[list[int]] = [[]]
        for one in torch.argsort(areas, stable=True).tolist():
            for group in groups:
                low = torch.maximum(self.boxes[group, :2], self.boxes[one, :2])
                high = torch.minimum(self.boxes[group, 2:], self.boxes[one, 2:])
                common = (high - low).clamp(min=0).prod(-1)
                # Edges are exact to a pixel only: half of the smaller token is more than that.
                if not bool((common > torch.minimum(areas[group], areas[one]) / 2).any()):
                    group.append(one)
                    break
            else:
                groups.append([one])
        return tuple(torch.tensor(sorted(group), dtype=torch.long) for group in groups)


@dataclass(frozen=True, eq=False)
class Seen:
    """What the model did with the prompt, once.

    Attributes:
        maps: for each picture fp32 (P, n), how much each of the P chosen heads attends to each of its n tokens.
        shares: fp32 (P, 3), what of each head's attention goes to image tokens, to the prompt's other tokens, and to
            the rest: keys that are no tokens of the prompt, such as prefixes and sinks. They make 1.
        probabilities: fp32 (V,), of each token at the first position of the answer.
        answer: what the model writes, greedily.
    """

    maps: tuple[torch.Tensor, ...] = field(repr=False)
    shares: torch.Tensor
    probabilities: torch.Tensor = field(repr=False)
    answer: str

    def mean(self, picture: int = 0) -> torch.Tensor:
        """The mean of a picture's map over the chosen heads, fp32 (n,)."""
        return self.maps[picture].mean(0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; maps are means over the chosen heads."""
        return {
            "answer": self.answer,
            "shares": dict(zip(SHARES, self.shares.mean(0).tolist(), strict=True)),
            "image_share_by_head": self.shares[:, 0].tolist(),
            "maps": [self.mean(i).tolist() for i in range(len(self.maps))],
        }


@dataclass(frozen=True)
class Token:
    """One token that may begin the answer.

    Attributes:
        id: its number.
        text: what it says.
        before: its probability without the method.
        after: with it; None where no method was given.
    """

    id: int
    text: str
    before: float
    after: float | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """A prompt looked at by a model alone, and with a method.

    Attributes:
        model_class: the model's class.
        prompt: the user's words.
        methods: names of what was attached; empty if nothing was.
        query: whose attention it is: "last", the last token of the prompt, or a piece of the prompt.
        attention: "self" or "cross".
        heads: the P chosen heads as (layer, head).
        pictures: the query's.
        before: the model alone.
        after: with the method; None if there is none.
        tokens: those with the highest probability, before or after, the highest first.
    """

    model_class: str
    prompt: str
    methods: tuple[str, ...]
    query: str
    attention: str
    heads: tuple[tuple[int, int], ...]
    pictures: tuple[Picture, ...]
    before: Seen
    after: Seen | None
    tokens: tuple[Token, ...]

    @property
    def sides(self) -> dict[str, Seen]:
        """What was seen by name: "before" and, with a method, "after"."""
        return {"before": self.before} | ({"after": self.after} if self.after is not None else {})

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        pictures = [
            {"width": one.image.width, "height": one.image.height, "boxes": one.boxes.tolist()} for one in self.pictures
        ]
        return {
            "model_class": self.model_class,
            "prompt": self.prompt,
            "methods": list(self.methods),
            "query": self.query,
            "attention": self.attention,
            "heads": [list(pair) for pair in self.heads],
            "pictures": pictures,
            "before": self.before.to_dict(),
            "after": None if self.after is None else self.after.to_dict(),
            "tokens": [vars(one) for one in self.tokens],
        }

    def png(self, path: str | os.PathLike[str]) -> None:
        """Write a picture: what the model was shown, the mean map before and after on one scale, the tokens as bars.

        Raises:
            SteerError: matplotlib is not installed, or there is no such folder.
        """
        from .drawing import png

        target = in_a_folder(path)
        write_whole(target, png(self))

    def html(self, path: str | os.PathLike[str]) -> None:
        """Write one page that needs nothing else: choose a head, point at a token, sort the table of tokens.

        Raises:
            SteerError: there is no such folder.
        """
        from .page import page

        target = in_a_folder(path)
        write_whole(target, page(self).encode())
