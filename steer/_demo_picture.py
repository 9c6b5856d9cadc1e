"""The picture that `steer demo` writes: what was shown, and some queries with every way's answer, green where right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from ._demo import Demo, Row

SHOWN = 8
MARGIN, GAP, PICTURE, SHOT = 28, 10, 84, 52
PAPER, INK, GREY, LINE = "#ffffff", "#1f2328", "#656d76", "#d8dee4"
RIGHT, WRONG = ("#dafbe1", "#116329"), ("#ffebe9", "#a40e26")


def draw(demo: Demo) -> Image.Image:
    """Demonstrations on top; below, one line for each of the first queries, one column for each way."""
    asked = demo.asked[:SHOWN]
    rows = [row for row in demo.rows if row.tokens is not None]
    names = [_wrapped(row) for row in rows]
    column = max(118, *(int(_width(line, 15)) + 2 * GAP for lines in names for line in lines))
    width = max(_column(len(rows), column) - GAP + MARGIN, 780)
    lines = -(-demo.shots * (SHOT + GAP) // (width - 2 * MARGIN + GAP))
    each = -(-demo.shots // lines)
    shots = [demo.demonstrations[i : i + each] for i in range(0, demo.shots, each)]
    top = MARGIN + 74 + len(shots) * (SHOT + 32) + 30
    height = top + 62 + len(asked) * (PICTURE + GAP) + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    asks = (
        f"tiny-vlm is asked “{asked[0].question}” and given these {demo.shots} demonstrations, or a vector made of them"
    )
    _text(pen, (MARGIN, MARGIN), f"Task: {demo.about}", 24, INK, "la", width - 2 * MARGIN)
    _text(pen, (MARGIN, MARGIN + 38), asks, 16, GREY, "la", width - 2 * MARGIN)
    for line, part in enumerate(shots):
        _strip(page, pen, part, MARGIN + 74 + line * (SHOT + 32))
    pen.line([(MARGIN, top - 18), (width - MARGIN, top - 18)], fill=LINE, width=2)
    _heads(pen, rows, names, top, column)
    for i, query in enumerate(asked):
        y = top + 62 + i * (PICTURE + GAP)
        page.paste(_enlarged(query.images[0], PICTURE), (MARGIN, y))
        _text(pen, (MARGIN + PICTURE + 55, y + PICTURE // 2), query.answer, 20, INK, "mm")
        for place, row in enumerate(rows):
            _cell(pen, _column(place, column), y, column, row.answers[i], row.right[i])
    return page


def _strip(page: Image.Image, pen: ImageDraw.ImageDraw, shots: Sequence[Any], y: int) -> None:
    for place, shot in enumerate(shots):
        x = MARGIN + place * (SHOT + GAP)
        page.paste(_enlarged(shot.images[0], SHOT), (x, y))
        _text(pen, (x + SHOT // 2, y + SHOT + 13), shot.answer, 14, INK, "mm", SHOT + GAP - 4)


def _heads(pen: ImageDraw.ImageDraw, rows: Sequence[Row], names: list[list[str]], y: int, column: int) -> None:
    _text(pen, (MARGIN + PICTURE // 2, y + 18), "query", 15, GREY, "mm")
    _text(pen, (MARGIN + PICTURE + 55, y + 18), "right answer", 15, GREY, "mm")
    for place, (row, lines) in enumerate(zip(rows, names, strict=True)):
        middle = _column(place, column) + column // 2
        for line, words in enumerate(lines):
            _text(pen, (middle, y + 18 + 18 * (line + 1 - len(lines))), words, 15, INK, "mm")
        _text(pen, (middle, y + 42), f"{row.accuracy:.2f} right", 15, GREY, "mm")


def _cell(pen: ImageDraw.ImageDraw, x: int, y: int, column: int, answer: str, right: bool) -> None:
    fill, ink = RIGHT if right else WRONG
    pen.rounded_rectangle([x, y, x + column, y + PICTURE], radius=10, fill=fill)
    _text(pen, (x + column // 2, y + PICTURE // 2 - 2), answer or "(nothing)", 20, ink, "mm", column - 8)
    _mark(pen, x + column - 16, y + 15, right, ink)


def _mark(pen: ImageDraw.ImageDraw, x: int, y: int, right: bool, ink: str) -> None:
    """A tick or a cross, so that the colours are not all there is to go by."""
    if right:
        pen.line([(x - 6, y), (x - 2, y + 4), (x + 6, y - 5)], fill=ink, width=3, joint="curve")
    else:
        pen.line([(x - 5, y - 5), (x + 5, y + 5)], fill=ink, width=3)
        pen.line([(x - 5, y + 5), (x + 5, y - 5)], fill=ink, width=3)


def _column(place: int, column: int) -> int:
    return MARGIN + PICTURE + 110 + GAP + place * (column + GAP)


def _wrapped(row: Row) -> list[str]:
    first, _, rest = row.name.partition(" ")
    return [first, rest] if rest else [row.name]


def _enlarged(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _width(words: str, size: int) -> float:
    return ImageFont.load_default(size).getlength(words)


def _text(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    words: str,
    size: int,
    ink: str,
    anchor: str,
    room: int | None = None,
) -> None:
    """Words at a place, smaller where they would not fit into their room."""
    while room is not None and size > 8 and _width(words, size) > room:
        size -= 1
    pen.text(place, words, fill=ink, font=ImageFont.load_default(size), anchor=anchor)
