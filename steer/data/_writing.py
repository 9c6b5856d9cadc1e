"""Examples as a folder that `read` reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import SteerError
from ..examples import Example
from ._files import SUFFIX

PICTURES = "images"


def write(folder: str | os.PathLike[str], examples: Iterable[Example], split: str = "data") -> Path:
    """Write examples as a JSON Lines file and PNG pictures.

    A picture's file is named by its content: equal ones are stored once, and a folder that is written again, or whose
    writing was interrupted, never shows an example another's picture.

    Args:
        folder: where; made if there is none. Its other splits stay.
        examples: with PIL images; written in RGB.
        split: the file's name without its ending.

    Returns:
        The path of the JSON Lines file.

    Raises:
        SteerError: a split that is no plain name, or a picture that is no PIL image.
    """
    # Late, because it brings torch, and reading does without.
    from ..files import write_whole

    if not re.fullmatch(r"[A-Za-z0-9_-]+", split):
        raise SteerError(f"the split {split!r} cannot name a file; use letters, digits, _ and -")
    target = Path(folder).absolute()
    (target / PICTURES).mkdir(parents=True, exist_ok=True)
    lines = []
    for index, example in enumerate(examples):
        names = [_write_picture(target, image, f"examples[{index}]", write_whole) for image in example.images]
        row = {"images": names, "question": example.question, "answer": example.answer}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    path = target / f"{split}{SUFFIX}"
    write_whole(path, "".join(lines).encode("utf-8"))
    return path


def _write_picture(folder: Path, image: Any, where: str, write_whole: Any) -> str:
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise SteerError(f"{where} has a {type(image).__name__} for a picture; only PIL images can be written")
    stream = io.BytesIO()
    image.convert("RGB").save(stream, format="PNG")
    name = f"{PICTURES}/{hashlib.sha256(stream.getvalue()).hexdigest()[:20]}.png"
    if not (folder / name).exists():
        write_whole(folder / name, stream.getvalue())
    return name
