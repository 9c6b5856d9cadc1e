"""A profile as one page of HTML with everything in it: no network, no library."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

import torch

from .drawing import is_share, words

if TYPE_CHECKING:
    from .head_map import HeadMap


def page(found: HeadMap) -> str:
    """The page as text."""
    layers, heads = found.values[found.measures[0]].shape
    data = {
        "layers": layers,
        "heads": heads,
        "measures": [
            {
                "words": words(found, name),
                "share": is_share(name),
                "values": _rows(found.values[name]),
                "errors": _rows(found.errors[name]),
            }
            for name in found.measures
        ],
    }
    # Inside a script element, the one thing that JSON may not hold is the element's end.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    title = html.escape(f"Heads of {found.model_class}")
    about = html.escape(f"{found.attention}-attention, mean over {found.n} samples with its standard error")
    return _PAGE.replace("__TITLE__", title).replace("__ABOUT__", about).replace("__DATA__", text)


def _rows(table: torch.Tensor) -> list[list[Any]]:
    """NaN as null."""
    return [[None if value != value else float(f"{value:.6g}") for value in row] for row in table.tolist()]


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>__TITLE__</title>
<style>
body { font: 14px system-ui, sans-serif; margin: 24px; color: #222; background: #fff; }
h1 { font-size: 18px; margin: 0 0 4px; }
p { margin: 0 0 12px; color: #555; }
main { display: flex; flex-wrap: wrap; gap: 32px; align-items: flex-start; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 2px 12px; text-align: right; border-bottom: 1px solid #ddd; }
th { cursor: pointer; user-select: none; }
rect.on, tr.on td { outline: 2px solid #222; outline-offset: -1px; }
rect { shape-rendering: crispEdges; }
text { font-size: 11px; fill: #555; }
#said { min-height: 1.4em; margin: 8px 0; font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
<h1>__TITLE__</h1>
<p>__ABOUT__</p>
<label>Measure <select id="measure"></select></label>
<div id="said" role="status">Point at a head.</div>
<main>
<svg id="map" role="img" aria-label="layers by heads"></svg>
<table><thead><tr></tr></thead><tbody></tbody></table>
</main>
<script id="data" type="application/json">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const ROWS = 30, LEFT = 36, BOTTOM = 34, BAR = 14, GAP = 22;
const cell = Math.max(6, Math.min(26, Math.floor(640 / Math.max(data.heads, data.layers))));
const pick = document.getElementById("measure"), said = document.getElementById("said");
const map = document.getElementById("map");
const head = document.querySelector("thead tr"), body = document.querySelector("tbody");
const COLUMNS = ["layer", "head", "value", "error"];
let order = { column: "value", down: true };
let shown = [];

const show = (x) => (x === null ? "-" : x.toPrecision(4));
const mix = (a, b, t) => "rgb(" + a.map((v, i) => Math.round(v + (b[i] - v) * t)).join(",") + ")";

function colour(measure, most, value) {
  if (value === null) return "#d9d9d9";
  const t = Math.min(1, Math.abs(value) / most);
  if (measure.share) return mix([247, 251, 255], [8, 48, 107], t);
  return mix([247, 247, 247], value < 0 ? [33, 102, 172] : [178, 24, 43], t);
}

function add(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

function point(one, on) {
  for (const part of [one.rect, one.row]) if (part) part.classList.toggle("on", on);
  const error = one.error === null ? "" : " \\u00b1 " + show(one.error);
  if (on) said.textContent = "layer " + one.layer + ", head " + one.head + ": " + show(one.value) + error;
}

function draw() {
  const measure = data.measures[pick.value];
  const flat = measure.values.flat().filter((x) => x !== null);
  const most = Math.max(1e-12, ...flat.map(Math.abs));
  const width = data.heads * cell, height = data.layers * cell;
  map.replaceChildren();
  map.setAttribute("width", LEFT + width + GAP + BAR + 70);
  map.setAttribute("height", height + BOTTOM + 8);
  const every = (count) => Math.max(1, Math.ceil(count * 14 / (count * cell)));
  shown = [];
  for (let layer = 0; layer < data.layers; layer++) {
    const y = 4 + (data.layers - 1 - layer) * cell;
    if (layer % every(data.layers) === 0)
      add(map, "text", { x: LEFT - 6, y: y + cell / 2 + 4, "text-anchor": "end" }, layer);
    for (let h = 0; h < data.heads; h++) {
      const value = measure.values[layer][h];
      const at = { x: LEFT + h * cell, y: y, width: cell, height: cell };
      const rect = add(map, "rect", { ...at, fill: colour(measure, most, value) });
      if (value === null) continue;
      const one = { layer: layer, head: h, value: value, error: measure.errors[layer][h], rect: rect };
      rect.addEventListener("mouseenter", () => point(one, true));
      rect.addEventListener("mouseleave", () => point(one, false));
      shown.push(one);
    }
  }
  for (let h = 0; h < data.heads; h += 2 * every(data.heads))
    add(map, "text", { x: LEFT + (h + 0.5) * cell, y: height + 18, "text-anchor": "middle" }, h);
  add(map, "text", { x: LEFT + width / 2, y: height + 32, "text-anchor": "middle" }, "head");
  add(map, "text", { x: 0, y: 12 }, "layer");
  const x = LEFT + width + GAP, low = measure.share ? 0 : -most, steps = 40;
  for (let i = 0; i < steps; i++) {
    const value = most - (i + 0.5) / steps * (most - low);
    const at = { x: x, y: 4 + i * height / steps, width: BAR, height: height / steps + 0.5 };
    add(map, "rect", { ...at, fill: colour(measure, most, value) });
  }
  add(map, "text", { x: x + BAR + 4, y: 14 }, show(most));
  add(map, "text", { x: x + BAR + 4, y: height + 4 }, show(low));
  list();
}

function list() {
  const sign = order.down ? -1 : 1;
  const best = [...shown].sort((a, b) => sign * (a[order.column] - b[order.column])).slice(0, ROWS);
  head.replaceChildren(...COLUMNS.map((name) => {
    const th = document.createElement("th");
    th.textContent = name + (order.column === name ? (order.down ? " \\u25be" : " \\u25b4") : "");
    th.addEventListener("click", () => {
      order = { column: name, down: order.column === name ? !order.down : true };
      list();
    });
    return th;
  }));
  for (const one of shown) one.row = null;
  body.replaceChildren(...best.map((one) => {
    one.row = document.createElement("tr");
    for (const name of COLUMNS) {
      const td = document.createElement("td");
      td.textContent = name === "value" || name === "error" ? show(one[name]) : one[name];
      one.row.appendChild(td);
    }
    one.row.addEventListener("mouseenter", () => point(one, true));
    one.row.addEventListener("mouseleave", () => point(one, false));
    return one.row;
  }));
}

data.measures.forEach((measure, i) => {
  const option = document.createElement("option");
  option.value = i;
  option.textContent = measure.words;
  pick.appendChild(option);
});
pick.addEventListener("change", draw);
draw();
</script>
</body>
</html>
"""
