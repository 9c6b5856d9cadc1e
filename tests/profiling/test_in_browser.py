"""The page of a profile in headless Chromium: a cell for each head, the table, choosing and sorting, no error."""

from __future__ import annotations

from pathlib import Path

import torch

from steer.profiling import HeadMap
from tests.browser import opened


def made_up() -> HeadMap:
    """Two measures of 3 layers with 4 heads, of which the last layer has none."""
    values = torch.arange(12.0).view(3, 4) - 4
    values[2] = float("nan")
    share = values.abs() / 8
    errors = {"ablation": values.abs() / 10, "attention_image": share / 10}
    return HeadMap({"ablation": values, "attention_image": share}, errors, 5, model_class="Tiny</script>")


def cells(page) -> list[list[str]]:
    (table,) = page.elements("table")
    rows = [one for one in table.inside if one.name == "tr"][1:]
    return [[cell.text for cell in row.inside if cell.name == "td"] for row in rows]


def test_the_page_draws_every_head_and_lists_the_highest(tmp_path: Path) -> None:
    made_up().html(tmp_path / "heads.html")
    page = opened(tmp_path / "heads.html", tmp_path)
    assert page.console == []
    (drawn,) = page.elements("svg", id="map")
    squares = [one for one in drawn.inside if one.name == "rect" and one.attributes["height"] != "0"]
    assert len([one for one in squares if one.attributes["width"] == one.attributes["height"]]) == 12
    assert [row[:2] for row in cells(page)[:2]] == [["1", "3"], ["1", "2"]]
    assert len(cells(page)) == 8


def test_another_measure_and_another_order(tmp_path: Path) -> None:
    made_up().html(tmp_path / "heads.html")
    script = """
      pick.value = "1"; pick.dispatchEvent(new Event("change"));
      document.querySelectorAll("th")[2].click();
      document.querySelector("#map rect").dispatchEvent(new Event("mouseenter"));
    """
    page = opened(tmp_path / "heads.html", tmp_path, script)
    assert page.console == []
    assert [row[:3] for row in cells(page)[:1]] == [["1", "0", "0.000"]]
    assert cells(page)[-1][2] == "0.5000"
