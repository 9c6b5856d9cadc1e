"""A HeadMap's order, files and pictures."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import steer
from steer.errors import FileFormatError, FingerprintError
from steer.profiling.page import page
from tests.engine.helpers import tiny_llama

NAN = torch.nan
EFFECT = torch.tensor([[0.1, -5.0, NAN], [0.3, 0.3, -0.1]])
SHARE = torch.tensor([[0.1, 0.0, NAN], [0.5, 1.0, 0.2]])


def made(**changes) -> steer.HeadMap:
    one = steer.HeadMap(
        values={"ablation": EFFECT, "attention_image": SHARE},
        errors={"ablation": EFFECT.abs() / 10, "attention_image": SHARE / 10},
        n=7,
        model_class="A </script><b>",
        fingerprint=steer.inspect(tiny_llama()).fingerprint(),
        options={"gradient": False, "scale": None},
    )
    return replace(one, **changes)


def test_order():
    assert made().top(9, "ablation") == [(1, 0), (1, 1), (0, 0), (1, 2), (0, 1)]
    assert made().top(2, "ablation", by="abs") == [(0, 1), (1, 0)]
    assert made().top(0, "ablation") == []
    alone = made(values={"ablation": EFFECT}, errors={"ablation": EFFECT})
    assert alone.top(1) == [(1, 0)]
    with pytest.raises(steer.SteerError, match="name one: ablation, attention_image"):
        made().top(1)
    with pytest.raises(steer.errors.UnknownNameError, match="did you mean 'attention_image'"):
        made().top(1, "attention_images")
    with pytest.raises(steer.errors.UnknownNameError, match="abs"):
        made().top(1, "ablation", by="absolute")


def test_tables_must_agree():
    with pytest.raises(steer.SteerError, match="one shape"):
        made(values={"ablation": EFFECT[:, :2]}, errors={"ablation": EFFECT})
    with pytest.raises(steer.SteerError, match="one shape"):
        made(values={}, errors={})
    with pytest.raises(steer.SteerError, match="values and errors"):
        made(errors={"ablation": EFFECT})


def test_files(tmp_path):
    path = tmp_path / "heads.safetensors"
    made().save(path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    back = steer.HeadMap.load(path)
    for name in made().measures:
        torch.testing.assert_close(back.values[name], made().values[name], rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(back.errors[name], made().errors[name], rtol=0, atol=0, equal_nan=True)
    assert back.measures == ("ablation", "attention_image")
    assert (back.n, back.attention, back.model_class) == (7, "self", "A </script><b>")
    assert (back.fingerprint, back.options) == (made().fingerprint, made().options)
    back.check_fits(tiny_llama())
    with pytest.raises(FingerprintError, match="profile this model"):
        back.check_fits(tiny_llama(num_hidden_layers=2))
    with pytest.raises(steer.SteerError, match="no folder"):
        made().save(tmp_path / "nowhere" / "heads.safetensors")
    with pytest.raises(steer.SteerError, match="as JSON"):
        made(options={"x": object()}).save(path)


FACTS = {
    "format_version": 1,
    "measures": ["ablation"],
    "n": 1,
    "attention": "self",
    "model_class": "A",
    "fingerprint": {},
    "options": {},
}
TABLES = {"values.ablation": torch.zeros(2, 2), "errors.ablation": torch.zeros(2, 2)}


def hostile(facts: object, tables: dict[str, torch.Tensor]) -> bytes:
    text = facts if isinstance(facts, str) else json.dumps(facts)
    return save(tables, metadata={"steer-head-map": text})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",
        hostile(FACTS, TABLES)[:-3],
        save(TABLES),
        hostile("[", TABLES),
        hostile("[" * 100_000, TABLES),
        hostile([], TABLES),
        hostile({**FACTS, "format_version": 2}, TABLES),
        hostile({**FACTS, "measures": []}, {}),
        hostile({**FACTS, "measures": ["other"]}, TABLES),
        hostile({**FACTS, "n": "many"}, TABLES),
        hostile({**FACTS, "fingerprint": 3}, TABLES),
        hostile({k: v for k, v in FACTS.items() if k != "n"}, TABLES),
        hostile(FACTS, {**TABLES, "more": torch.zeros(1)}),
        hostile(FACTS, {**TABLES, "values.ablation": torch.zeros(2, 3)}),
        hostile(FACTS, {name: table.double() for name, table in TABLES.items()}),
        hostile(FACTS, {**TABLES, "values.ablation": torch.full((2, 2), torch.inf)}),
    ],
)
def test_what_is_no_profile_is_told(data, tmp_path):
    path = tmp_path / "heads.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=re.escape(str(path))):
        steer.HeadMap.load(path)
    path.write_bytes(hostile(FACTS, TABLES))
    assert steer.HeadMap.load(path).n == 1


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileFormatError, match=r"nothing\.safetensors"):
        steer.HeadMap.load(tmp_path / "nothing.safetensors")


def colours(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3).astype(int)


def share_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels - np.array(colour)).max(-1) <= 3).mean())


def test_the_picture_shows_signs_shares_and_empty_places(tmp_path):
    path = tmp_path / "heads.png"
    table = torch.tensor([[2.0, -2.0, 0.0], [NAN, 0.0, 0.0]])
    made(values={"ablation": table}, errors={"ablation": table}).plot(path)
    pixels = colours(path.read_bytes())
    # RdBu_r at its ends and its middle; grey. One place in six each, three for the middle.
    areas = [share_of(pixels, c) for c in ((103, 0, 31), (5, 48, 97), (217, 217, 217))]
    assert min(areas) > 0.05
    assert max(areas) < 1.2 * min(areas)
    assert share_of(pixels, (247, 247, 247)) == pytest.approx(3 * areas[2], rel=0.2)
    made().plot(path, "attention_image")
    pixels = colours(path.read_bytes())
    assert share_of(pixels, (253, 231, 37)) == pytest.approx(share_of(pixels, (68, 1, 84)), rel=0.2)
    made().plot(path)
    with pytest.raises(steer.errors.UnknownNameError):
        made().plot(path, "attention")


def test_a_picture_needs_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(steer.SteerError, match=r"steer-vlm\[experiments\]"):
        made().plot(tmp_path / "heads.png")
    assert list(tmp_path.iterdir()) == []


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path):
    made().html(tmp_path / "heads.html")
    text = (tmp_path / "heads.html").read_text()
    assert text == page(made())
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, flags=re.DOTALL)
    told = json.loads(data)
    assert (told["layers"], told["heads"]) == (2, 3)
    assert [one["share"] for one in told["measures"]] == [False, True]
    assert told["measures"][0]["words"] == "fall of the answer when ablated (nats)"
    for one, table in zip(told["measures"], (EFFECT, SHARE), strict=True):
        back = torch.tensor([[NAN if x is None else x for x in row] for row in one["values"]])
        torch.testing.assert_close(back, table, rtol=1e-5, atol=0, equal_nan=True)
    assert "A &lt;/script&gt;&lt;b&gt;" in text
    assert "<b>" not in text
    addresses = re.findall(r"""(?:https?:)?//[\w.]+[^"'\s]*|\bsrc=|\bhref=|@import|url\(""", text)
    assert addresses == ["http://www.w3.org/2000/svg"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_pages_script_is_javascript(tmp_path):
    script = re.findall(r"<script>(.*?)</script>", page(made()), flags=re.DOTALL)[0]
    (tmp_path / "script.js").write_text(script)
    subprocess.run(["node", "--check", tmp_path / "script.js"], check=True, timeout=60)
