"""What was seen, as one page of HTML with everything in it: no network, no library."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from typing import Any

import torch

from .found import SHARES, Look, Picture, Seen
from .template import PAGE
from .words import head_words, title, token_words

SIDE = 1024
"""Larger pictures are shown smaller; what each token looks at stays in pixels of the original."""
LEVELS = 65535


def page(found: Look) -> str:
    """The page as text."""
    most = max(max(float(one.max()) for one in (*side.maps, side.shares)) for side in found.sides.values())
    data = {
        "heads": [list(pair) for pair in found.heads],
        "shares": list(SHARES),
        "unit": max(most, 1e-12) / LEVELS,
        "pictures": [_picture(one) for one in found.pictures],
        "sides": {name: _side(side, max(most, 1e-12)) for name, side in found.sides.items()},
        "tokens": [{"text": token_words(one), "before": one.before, "after": one.after} for one in found.tokens],
    }
    # Inside a script element, the one thing that JSON may not hold is the element's end.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    parts = {"TITLE": html.escape(title(found)), "ABOUT": html.escape(head_words(found, mean=False)), "DATA": text}
    return re.sub("__(TITLE|ABOUT|DATA)__", lambda place: parts[place[1]], PAGE)


def _side(side: Seen, most: float) -> dict[str, Any]:
    return {
        "answer": side.answer,
        "maps": [_packed(one, most) for one in side.maps],
        "shares": _packed(side.shares, most),
    }


def _packed(table: torch.Tensor, most: float) -> str:
    """Numbers from 0 to `most` in 16 bits each, low byte first: a page of all heads of a large model stays small."""
    whole = (table.double() / most * LEVELS).round().clamp(0, LEVELS).long().flatten()
    return base64.b64encode(whole.numpy().astype("<u2").tobytes()).decode()


def _picture(picture: Picture) -> dict[str, Any]:
    image = picture.image
    shown = image
    if max(image.size) > SIDE:
        shown = image.copy()
        shown.thumbnail((SIDE, SIDE))
    small = shown.width * shown.height <= 256 * 256
    kind = "png" if small else "jpeg"
    buffer = io.BytesIO()
    shown.save(buffer, format=kind, **({} if small else {"quality": 88}))
    text = base64.b64encode(buffer.getvalue()).decode()
    boxes = [[round(edge, 1) for edge in box] for box in picture.boxes.tolist()]
    return {
        "src": f"data:image/{kind};base64,{text}",
        "width": image.width,
        "height": image.height,
        "boxes": boxes,
        "views": [view.tolist() for view in picture.views],
    }
