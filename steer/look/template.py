"""The page without its data: HTML, styles and the script that draws."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>__TITLE__</title>
<style>
:root {
  color-scheme: light dark;
  --page: #fff; --ink: #1d1d1f; --soft: #5f6368; --line: #dadce0; --before: #9a9a9a; --after: #2a788e;
  --up: #1b7f4d; --down: #b3261e; --text-part: #c9a227; --rest-part: #c5c7ca;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #17181a; --ink: #e8eaed; --soft: #a8adb3; --line: #3c4043; --before: #8a8d91; --after: #4fb3c9;
    --up: #6fd39b; --down: #ff8a80; --text-part: #d8b64a; --rest-part: #55585c;
  }
}
* { box-sizing: border-box; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 16px; max-width: 1040px; color: var(--ink);
  background: var(--page); }
h1 { font-size: 18px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 15px; margin: 24px 0 8px; }
p { margin: 0 0 10px; color: var(--soft); }
.answers { display: grid; grid-template-columns: max-content 1fr; gap: 2px 10px; margin: 10px 0 16px; }
.answers dt { color: var(--soft); }
.answers dd { margin: 0; overflow-wrap: anywhere; }
.controls { display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: center; margin-bottom: 8px; }
.controls label { display: flex; gap: 8px; align-items: center; color: var(--soft); }
select { font: inherit; max-width: 70vw; }
.pictures { display: grid; gap: 12px; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  align-items: end; }
figure { margin: 0; min-width: 0; max-width: 340px; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 4px; font-variant-numeric: tabular-nums; }
svg.picture, svg.map { display: block; width: 100%; height: auto; max-height: 70vh; border: 1px solid var(--line); }
svg.map image { filter: grayscale(1); }
svg.map rect { fill-opacity: var(--opacity); shape-rendering: crispEdges; }
svg.map rect.on { stroke: #ff5a36; stroke-width: 2px; vector-effect: non-scaling-stroke; }
.small { image-rendering: pixelated; }
#said { min-height: 1.4em; margin: 8px 0; color: var(--soft); font-variant-numeric: tabular-nums; }
.legend { display: flex; gap: 8px; align-items: center; font-size: 13px; color: var(--soft); max-width: 340px; }
.legend i { flex: 1; height: 10px; }
.shares { display: grid; grid-template-columns: max-content 1fr; gap: 6px 10px; align-items: center;
  max-width: 700px; }
.shares div { display: flex; height: 22px; font-size: 12px; line-height: 22px; }
.shares div span { overflow: hidden; white-space: nowrap; text-align: center; color: #111; }
.image-part { background: #58b3c7; } .text-part { background: var(--text-part); }
.rest-part { background: var(--rest-part); }
.key { display: flex; gap: 14px; font-size: 13px; color: var(--soft); margin-top: 6px; flex-wrap: wrap; }
.key b { display: inline-block; width: 10px; height: 10px; margin-right: 5px; }
table { border-collapse: collapse; width: 100%; max-width: 700px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 8px; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
td.bars { width: 34%; }
td.bars i { display: block; height: 6px; min-width: 1px; margin: 2px 0; }
.up { color: var(--up); } .down { color: var(--down); }
@media (max-width: 480px) { body { padding: 12px; } th, td { padding: 4px; } td.bars, th.bars { width: 24%; }
  .row { grid-template-columns: 1fr 1fr; } .row figure:first-child:nth-last-child(3) { grid-column: 1 / -1;
  max-width: 50%; } }
</style>
</head>
<body>
<h1>__TITLE__</h1>
<p>__ABOUT__</p>
<dl class="answers"></dl>
<div class="controls">
<label>Heads <select id="head"></select></label>
<label>Map over picture <input id="opacity" type="range" min="0" max="1" step="0.05" value="0.7"></label>
</div>
<main>
<div class="pictures"></div>
<div id="said" role="status">Point at a token of the picture.</div>
<h2>Where the attention goes</h2>
<div class="shares"></div>
<div class="key"></div>
<h2>The answer's first token</h2>
<table id="tokens"><thead><tr></tr></thead><tbody></tbody></table>
</main>
<script id="data" type="application/json">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const names = Object.keys(data.sides), two = names.length === 2;
const VIRIDIS = ["440154", "482173", "433e85", "38588c", "2d708e", "25858e", "1e9b8a", "2ab07f", "52c569", "86d549",
  "c2df23", "fde725"].map((one) => [0, 2, 4].map((at) => parseInt(one.slice(at, at + 2), 16)));
const WORDS = { image: "pictures", text: "text", rest: "keys that are no tokens of the prompt" };
const pick = document.getElementById("head"), opacity = document.getElementById("opacity");
const said = document.getElementById("said");

function unpack(text) {
  const bytes = atob(text), values = new Float64Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++)
    values[i] = (bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1)) * data.unit;
  return values;
}

for (const side of Object.values(data.sides)) {
  side.maps = side.maps.map(unpack);
  side.shares = unpack(side.shares);
}

// One row of a table with a row for each head; the mean over all heads where `head` is -1.
function rowOf(values, width, head) {
  if (head >= 0) return values.slice(head * width, (head + 1) * width);
  const mean = new Float64Array(width);
  for (let i = 0; i < values.length; i++) mean[i % width] += values[i] * width / values.length;
  return mean;
}

function percent(x) {
  if (x > 0 && x < 0.0005) return "< 0.1 %";
  return (100 * x).toFixed(1) + " %";
}

function fine(x) {
  return Number((100 * x).toPrecision(3)) + " %";
}

function colour(t) {
  const at = Math.max(0, Math.min(1, t)) * (VIRIDIS.length - 1), low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return "rgb(" + VIRIDIS[low].map((v, i) => Math.round(v + (VIRIDIS[low + 1][i] - v) * (at - low))).join(",") + ")";
}

function make(parent, name, words, kind) {
  const made = document.createElement(name);
  if (words !== undefined) made.textContent = words;
  if (kind) made.className = kind;
  parent.appendChild(made);
  return made;
}

function draw(parent, name, attributes) {
  const made = document.createElementNS(parent.namespaceURI, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  parent.appendChild(made);
  return made;
}

function svg(figure, picture, kind, label) {
  figure.insertAdjacentHTML("beforeend", "<svg></svg>");
  const made = figure.lastElementChild;
  made.setAttribute("class", kind);
  made.setAttribute("viewBox", "0 0 " + picture.width + " " + picture.height);
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", label);
  const size = { width: picture.width, height: picture.height };
  draw(made, "image", { ...size, href: picture.src, class: picture.width <= 128 ? "small" : "" });
  return made;
}

// Everything that stays: pictures, and a cell for each token; a row for each view of each picture.
const shown = data.pictures.flatMap((picture, index) => picture.views.map((tokens, view) => {
  const row = make(document.querySelector(".pictures"), "div", undefined, "row");
  const figure = make(row, "figure"), views = picture.views.length;
  const words = "picture" + (data.pictures.length > 1 ? " " + (index + 1) : "");
  make(figure, "figcaption", words + (views > 1 ? ", view " + (view + 1) + " of " + views : ""));
  svg(figure, picture, "picture", "the picture");
  const one = { index, tokens, count: picture.boxes.length };
  one.maps = names.map((name) => {
    const here = make(row, "figure"), caption = make(here, "figcaption");
    const map = svg(here, picture, "map", "attention over the picture, " + name);
    map.dataset.side = name;
    const cells = tokens.map((token, place) => {
      const [left, top, right, bottom] = picture.boxes[token];
      const cell = draw(map, "rect", { x: left, y: top, width: right - left, height: bottom - top });
      cell.addEventListener("pointerenter", () => point(one, place, true));
      cell.addEventListener("pointerleave", () => point(one, place, false));
      return cell;
    });
    return { name, caption, cells, weights: [] };
  });
  const legend = make(document.querySelector(".pictures"), "div", undefined, "legend");
  make(legend, "span", "0");
  const bar = make(legend, "i");
  one.most = make(legend, "span");
  bar.style.background = "linear-gradient(90deg," + VIRIDIS.map((_, i) => colour(i / (VIRIDIS.length - 1))) + ")";
  return one;
}));

function point(one, place, on) {
  for (const map of one.maps) map.cells[place].classList.toggle("on", on);
  const values = one.maps.map((map) => map.name + " " + fine(map.weights[one.tokens[place]]));
  if (on) said.textContent = "token " + one.tokens[place] + " of the picture: " + values.join(", ");
}

function headName(i) {
  return i < 0 ? "mean of " + data.heads.length : "layer " + data.heads[i][0] + ", head " + data.heads[i][1];
}

function update() {
  const head = Number(pick.value);
  for (const one of shown) {
    for (const map of one.maps) map.weights = rowOf(data.sides[map.name].maps[one.index], one.count, head);
    const most = Math.max(1e-12, ...one.maps.map((map) => map.weights.reduce((a, b) => Math.max(a, b), 0)));
    for (const map of one.maps) {
      map.cells.forEach((cell, i) => cell.setAttribute("fill", colour(map.weights[one.tokens[i]] / most)));
      const share = one.tokens.reduce((sum, token) => sum + map.weights[token], 0);
      map.caption.textContent = map.name + ": " + percent(share) + " of the attention";
    }
    one.most.textContent = fine(most) + " on one token";
  }
  const place = document.querySelector(".shares");
  place.replaceChildren();
  for (const name of names) {
    make(place, "span", name).style.color = "inherit";
    const bar = make(place, "div");
    rowOf(data.sides[name].shares, data.shares.length, head).forEach((share, i) => {
      const part = make(bar, "span", share > 0.1 ? percent(share) : "", data.shares[i] + "-part");
      part.style.width = 100 * share + "%";
      part.title = WORDS[data.shares[i]] + ": " + percent(share);
    });
  }
}

function veil() {
  document.querySelector("main").style.setProperty("--opacity", opacity.value);
}

const COLUMNS = [["token", (one) => one.text], ["before", (one) => one.before]];
if (two) COLUMNS.push(["after", (one) => one.after], ["change", (one) => one.after - one.before]);
let order = { column: -1, down: true };

function list() {
  const key = order.column < 0 ? (one) => Math.max(one.before, one.after ?? 0) : COLUMNS[order.column][1];
  const compare = (a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (order.down ? -1 : 1);
  const head = document.querySelector("#tokens thead tr"), body = document.querySelector("#tokens tbody");
  head.replaceChildren();
  COLUMNS.forEach(([name], i) => {
    const th = make(head, "th");
    const mark = order.column === i ? (order.down ? " \\u25be" : " \\u25b4") : "";
    if (mark) th.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    make(th, "button", name + mark).addEventListener("click", () => {
      order = { column: i, down: order.column === i ? !order.down : i > 0 };
      list();
    });
  });
  make(head, "th", undefined, "bars");
  body.replaceChildren();
  const most = Math.max(1e-12, ...data.tokens.map((one) => Math.max(one.before, one.after ?? 0)));
  for (const one of [...data.tokens].sort(compare)) {
    const row = make(body, "tr");
    make(row, "td", one.text);
    make(row, "td", percent(one.before));
    if (two) {
      const change = one.after - one.before, points = (100 * Math.abs(change)).toFixed(1);
      make(row, "td", percent(one.after));
      const sign = points === "0.0" ? "" : change > 0 ? "+" : "\\u2212";
      make(row, "td", sign + points, sign && (change > 0 ? "up" : "down"));
    }
    const bars = make(row, "td", undefined, "bars");
    for (const name of names) {
      const bar = make(bars, "i");
      bar.style.background = "var(--" + name + ")";
      bar.style.width = 100 * one[name] / most + "%";
    }
  }
}

for (const name of names) {
  const answers = document.querySelector(".answers");
  make(answers, "dt", names.length === 2 ? name : "answer");
  make(answers, "dd", data.sides[name].answer || "(nothing)");
}
for (let i = data.heads.length > 1 ? -1 : 0; i < data.heads.length; i++)
  make(pick, "option", headName(i)).value = i;
data.shares.forEach((name, i) => {
  // Only where some head gives it something.
  const given = Object.values(data.sides).some((side) => side.shares.some((x, at) => at % 3 === i && x >= 0.0005));
  if (!given) return;
  const one = make(document.querySelector(".key"), "span");
  make(one, "b", undefined, name + "-part");
  one.append(WORDS[name]);
});
pick.addEventListener("change", update);
opacity.addEventListener("input", veil);
veil();
update();
list();
</script>
</body>
</html>
"""
