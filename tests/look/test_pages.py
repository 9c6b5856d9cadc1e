"""The page in headless Chromium: both maps with a cell for each token, the table, no error; and the PNG."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from steer.errors import SteerError
from steer.look import Look, Picture, Seen, Token
from tests.browser import Opened, opened

BOXES = torch.tensor([[0.0, 0, 30, 20], [30, 0, 60, 20], [0, 20, 30, 40], [30, 20, 60, 40], [0, 0, 0, 0]])
# Two heads, five tokens; the last token sees padding alone.
BEFORE = torch.tensor([[0.1, 0.2, 0.0, 0.05, 0.05], [0.3, 0.0, 0.0, 0.1, 0.0]])
AFTER = torch.tensor([[0.4, 0.2, 0.0, 0.05, 0.05], [0.5, 0.0, 0.1, 0.1, 0.0]])
HOSTILE = "</script><script>console.error('escaped')</script>__DATA__ $x_1$"


def seen(weights: torch.Tensor, count: int) -> Seen:
    pictured = count * weights.sum(-1)
    shares = torch.stack([pictured, 1 - pictured, torch.zeros_like(pictured)], -1)
    return Seen((weights,) * count, shares, torch.tensor([0.7, 0.3]), HOSTILE)


def made_up(pictures: int = 1, method: bool = True) -> Look:
    """A Look whose numbers are known."""
    image = Image.new("RGB", (60, 40), (200, 30, 30))
    tokens = [("yes", 0.7, 0.2), ("no", 0.2, 0.75), (HOSTILE, 0.05, 0.01), ("\n", 0.00001, 0.0)]
    return Look(
        "TinyModel",
        HOSTILE,
        ("focus",) if method else (),
        "last",
        "self",
        ((1, 4), (3, 0)),
        (Picture(image, BOXES),) * pictures,
        seen(BEFORE / pictures, pictures),
        seen(AFTER / pictures, pictures) if method else None,
        tuple(Token(i, text, a, b if method else None) for i, (text, a, b) in enumerate(tokens)),
    )


@cache
def in_browser(folder: Path, pictures: int = 1, method: bool = True, script: str = "") -> Opened:
    inside = folder / f"{pictures}-{method}-{bool(script)}"
    inside.mkdir(exist_ok=True)
    made_up(pictures, method).html(inside / "look.html")
    return opened(inside / "look.html", inside, script)


def rows_of(page: Opened) -> list[list[str]]:
    """The cells of the table of tokens."""
    (table,) = page.elements("table", id="tokens")
    rows = [one for one in table.inside if one.name == "tr"]
    return [[cell.text for cell in row.inside if cell.name == "td"] for row in rows][1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("look")


def test_the_page_has_two_maps_with_all_tokens_and_the_table_and_no_errors(folder: Path) -> None:
    page = in_browser(folder)
    assert page.console == []
    maps = page.elements("svg", kind="map")
    assert [one.attributes["data-side"] for one in maps] == ["before", "after"]
    for one in maps:
        cells = [cell for cell in one.inside if cell.name == "rect"]
        assert len(cells) == 5
        assert [cell.attributes["width"] for cell in cells] == ["30"] * 4 + ["0"]
        assert all(cell.attributes["fill"].startswith("rgb(") for cell in cells)
    assert rows_of(page) == [
        ["no", "20.0 %", "75.0 %", "+55.0", ""],
        ["yes", "70.0 %", "20.0 %", "−50.0", ""],
        [HOSTILE, "5.0 %", "1.0 %", "−4.0", ""],
        ["'\\n'", "< 0.1 %", "0.0 %", "0.0", ""],
    ]


def test_both_maps_have_one_scale(folder: Path) -> None:
    """The mean's largest weight, 0.45, is after: it alone has the last colour; what is equal has one colour."""
    colours = {}
    for one in in_browser(folder).elements("svg", kind="map"):
        cells = [cell for cell in one.inside if cell.name == "rect"]
        at = {tuple(float(c.attributes[n]) for n in ("x", "y", "width")): c.attributes["fill"] for c in cells}
        colours[one.attributes["data-side"]] = at
    last, first = "rgb(253,231,37)", "rgb(68,1,84)"
    assert [key for key, fill in colours["after"].items() if fill == last] == [(0, 0, 30)]
    assert last not in colours["before"].values()
    assert colours["before"][0, 20, 30] == first
    assert colours["before"][30, 0, 30] == colours["after"][30, 0, 30]


def test_choosing_a_head_sorting_and_pointing(folder: Path) -> None:
    script = """
      pick.value = "1"; pick.dispatchEvent(new Event("change"));
      opacity.value = "0.25"; opacity.dispatchEvent(new Event("input"));
      document.querySelectorAll("#tokens th button")[1].click();
      document.querySelector("svg.map rect").dispatchEvent(new Event("pointerenter"));
    """
    page = in_browser(folder, script=script)
    assert page.console == []
    assert [one.text for one in page.elements("option")] == ["mean of 2", "layer 1, head 4", "layer 3, head 0"]
    captions = [one.text for one in page.elements("figcaption")]
    assert captions == ["picture", "before: 40.0 % of the attention", "after: 70.0 % of the attention"]
    assert [row[0] for row in rows_of(page)] == ["yes", "no", HOSTILE, "'\\n'"]
    (said,) = page.elements("div", id="said")
    assert said.text == "token 0 of the picture: before 30 %, after 50 %"
    (main,) = page.elements("main")
    assert "0.25" in main.attributes["style"]
    assert len(page.elements("rect", kind="on")) == 2


def test_tokens_that_lie_on_others_are_another_view() -> None:
    thumbnail = torch.tensor([[0.0, 0, 60, 20], [0, 20, 60, 40]])
    boxes = torch.cat([thumbnail, BOXES[:4] + torch.tensor([0.0, 0, 0.6, 0.4])])
    views = Picture(Image.new("RGB", (60, 40)), boxes).views
    assert [one.tolist() for one in views] == [[2, 3, 4, 5], [0, 1]]
    assert [one.tolist() for one in Picture(Image.new("RGB", (60, 40)), BOXES).views] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(("pictures", "method", "maps"), [(3, True, 6), (1, False, 1)])
def test_several_pictures_and_no_method(folder: Path, pictures: int, method: bool, maps: int) -> None:
    page = in_browser(folder, pictures, method)
    assert page.console == []
    assert len(page.elements("svg", kind="map")) == maps
    assert len(page.elements("svg", kind="picture")) == pictures
    assert len(rows_of(page)[0]) == (5 if method else 3)


def test_an_error_in_a_page_is_seen_by_these_tests(folder: Path) -> None:
    inside = folder / "broken"
    inside.mkdir(exist_ok=True)
    made_up().html(inside / "look.html")
    broken = opened(inside / "look.html", inside, "null.nothing;")
    assert len(broken.console) == 1
    assert "TypeError" in broken.console[0]


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    made_up().html(tmp_path / "look.html")
    text = (tmp_path / "look.html").read_text()
    assert not re.search(r"https?:|//[a-z]|@import|<link|\bimport\b|fetch\(", text)
    assert all(one.startswith("data:image/png;base64,") for one in re.findall(r'"src": "(.{0,40})', text))


@pytest.mark.parametrize(("pictures", "method"), [(1, True), (2, True), (1, False)])
def test_the_png_shows_the_picture_and_maps_with_one_scale(tmp_path: Path, pictures: int, method: bool) -> None:
    made_up(pictures, method).png(tmp_path / "look.png")
    image = Image.open(tmp_path / "look.png").convert("RGB")
    assert image.width > 400
    # The picture's own colour is there once a picture, and in no map: below these it is grey.
    red = sum(count for count, colour in image.getcolors(1 << 24) or [] if colour == (200, 30, 30))
    assert red > 5000 * pictures
    assert red < 0.5 * image.width * image.height


def test_a_large_picture_is_shown_smaller_and_its_boxes_stay(tmp_path: Path) -> None:
    found = made_up()
    large = Picture(Image.new("RGB", (3000, 2000)), BOXES * 50)
    replace(found, pictures=(large,), tokens=(Token(7, "", 0.5, 0.5),)).html(tmp_path / "look.html")
    data = json.loads(re.search(r'>(\{"heads".*?\})<', (tmp_path / "look.html").read_text(), re.S)[1])
    (picture,) = data["pictures"]
    shown = Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2])))
    assert (shown.size, picture["width"], picture["height"]) == ((1024, 683), 3000, 2000)
    assert picture["boxes"] == large.boxes.tolist()
    assert large.image.size == (3000, 2000)
    assert data["tokens"][0]["text"] == "token 7"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    found: Any = made_up()
    for write in (found.png, found.html):
        with pytest.raises(SteerError, match="no folder"):
            write(tmp_path / "nowhere" / "look.x")
        with pytest.raises(SteerError, match="is a folder"):
            write(tmp_path)
