"""Pictures that are opened when they are used and not kept: a data set fits neither into memory nor into open files."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SteerError


@dataclass(frozen=True)
class Pictures(Sequence[Any]):
    """The pictures of one example.

    Attributes:
        sources: for each, the path of a file, a file's bytes, or a picture that is open already.
    """

    sources: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        chosen = self.sources[index]
        return tuple(map(opened, chosen)) if isinstance(index, slice) else opened(chosen)


def located(value: Any, where: str, folder: Path | None) -> Any:
    """What `opened` can open, from what stands in a row.

    Raises:
        SteerError: a file that is not there, or that is outside the folder that the row came from.
    """
    if isinstance(value, Mapping):
        return _decoded(value, where)
    if isinstance(value, str | Path):
        return _file(Path(value), where) if folder is None else _inside(str(value), where, folder)
    if folder is not None or value is None:
        raise SteerError(f"{where}: a picture is {value!r:.80}, which is not the path of a file")
    return value


def opened(source: Any) -> Any:
    """A PIL image in RGB, upright; anything that is neither file nor PIL image as it is."""
    from PIL import Image, ImageOps

    if isinstance(source, Image.Image):
        return source if source.mode == "RGB" else source.convert("RGB")
    if not isinstance(source, Path | bytes):
        return source
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    # Pillow raises SyntaxError, ValueError and others of its own for files that are damaged.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = f"of {len(source)} bytes" if isinstance(source, bytes) else source
        raise SteerError(f"cannot read the picture {name}: {error}") from error


def _decoded(value: Mapping[str, Any], where: str) -> Any:
    """A picture as Hugging Face datasets hold it undecoded."""
    if isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if not isinstance(value.get("path"), str):
        raise SteerError(f"{where}: a picture has the keys {', '.join(map(str, value))}; it needs bytes or path")
    return _file(Path(value["path"]), where)


def _file(path: Path, where: str) -> Path:
    # os.path, because Path.is_file raises where a name is too long or cannot be one.
    if not os.path.isfile(path):
        shown = repr(str(path)[:200])[1:-1]
        raise SteerError(f"{where}: there is no picture {shown}; pictures are files, and nothing is downloaded")
    return path


def _inside(name: str, where: str, folder: Path) -> Path:
    """A file of the folder. Folders are handed on, and one must not make its reader open files elsewhere."""
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    # A zero, half a character, a name that is too long, links in a circle: none of them is a file's name.
    except (ValueError, OSError, RuntimeError):
        inside = False
    if not inside:
        raise SteerError(
            f"{where}: the picture {name!r:.200} is outside the folder {folder}; move it there, or read the rows "
            "yourself and give steer.data.read a list with absolute paths"
        )
    return _file(path, where)
