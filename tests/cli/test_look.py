"""`steer look` prints and writes what `steer.look.look` finds."""

from __future__ import annotations

import json

import pytest
import torch

import steer
from steer.look import look
from steer.profiling import HeadMap
from steer.session import map_of

EXAMPLE = steer.zoo.examples("plain:colour", n=1)[0]


@pytest.fixture
def picture(tmp_path):
    EXAMPLE.images[0].save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_json_is_what_the_library_finds_and_files_are_written(steer_cli, picture, tmp_path):
    png, html = tmp_path / "look.png", tmp_path / "look.html"
    asked = ("look", "--model", "tiny-vlm", "--prompt", EXAMPLE.question, "--image", picture)
    options = ("--method", "image_focus", "--config", "beta=2", "--heads", "3.1,0.4", "--tokens", 4)
    ran = steer_cli(*asked, *options, "--png", png, "--html", html, "--json")
    assert ran.code == 0, ran.err
    method = steer.create("image_focus", beta=2.0)
    found = look(*steer.zoo.load(), EXAMPLE.images[0], EXAMPLE.question, method, heads=[(3, 1), (0, 4)], tokens=4)
    data = json.loads(ran.out)
    assert data.pop("model") == "tiny-vlm"
    assert (data.pop("png"), data.pop("html")) == (str(png), str(html))
    assert data == json.loads(json.dumps(found.as_dict()))
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert "<!DOCTYPE html>" in html.read_text()[:20]


def test_the_table_names_answers_shares_and_tokens(steer_cli, picture):
    ran = steer_cli("look", "--model", "tiny-vlm", "--prompt", EXAMPLE.question, "--image", picture, "--tokens", 3)
    assert ran.code == 0, ran.err
    found = look(*steer.zoo.load(), EXAMPLE.images[0], EXAMPLE.question)
    assert found.before.answer in ran.out
    assert f"{100 * float(found.before.shares[:, 0].mean()):.1f} %" in ran.out
    assert all(one.text.strip() in ran.out for one in found.tokens[:3])
    assert "change" not in ran.out


def test_the_top_heads_of_a_profile(steer_cli, picture, tmp_path):
    model, _ = steer.zoo.load()
    values = torch.zeros(4, 6)
    values[2, 5], values[0, 3] = 2.0, 1.0
    fingerprint = map_of(model).fingerprint()
    HeadMap({"a": values}, {"a": values.clone()}, 1, fingerprint=fingerprint).save(tmp_path / "heads.safetensors")
    asked = ("look", "--model", "tiny-vlm", "--prompt", EXAMPLE.question, "--image", picture, "--json")
    ran = steer_cli(*asked, "--head-map", tmp_path / "heads.safetensors", "--top", 2)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["heads"] == [[2, 5], [0, 3]]
    ran = steer_cli(*asked, "--head-map", tmp_path / "heads.safetensors", "--measure", "b")
    assert ran.code == 1
    assert "'b'" in ran.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--heads", "3"), "layer.head"),
        (("--heads", "3.1", "--head-map", "x.safetensors"), "one of them"),
        (("--measure", "ablation"), "--head-map"),
        (("--png", "nowhere/look.png"), "no folder"),
        (("--method", "image_focuss"), "image_focus"),
        (("--image", "nowhere.png"), "nowhere.png"),
    ],
)
def test_mistakes_are_one_line(steer_cli, picture, options, said):
    ran = steer_cli("look", "--model", "tiny-vlm", "--prompt", "x", "--image", picture, *options)
    assert ran.code == 1
    assert said in ran.err
    assert "Traceback" not in ran.err
