"""`steer profile` writes and prints what `steer.profile` finds."""

from __future__ import annotations

import json

import pytest
import torch

import steer
from steer.profiling import patching

ASKED = ("profile", "--model", "tiny-vlm", "--data", "zoo:colour", "--limit", 6, "--samples", 3, "--shots", 2)


def by_call(**options) -> steer.HeadMap:
    model, processor = steer.zoo.load()
    asked = steer.zoo.examples("colour", "demo", 6)
    shown = steer.Demonstrations(tuple(asked), 2)
    return steer.profile(model, processor, asked, demonstrations=shown, samples=3, progress=False, **options)


def test_file_picture_page_and_table(steer_cli, tmp_path):
    out, png, html = (tmp_path / name for name in ("heads.safetensors", "heads.png", "heads.html"))
    measures = ("--measure", "ablation,attention", "--gradient", "--top", 3)
    ran = steer_cli(*ASKED, *measures, "--out", out, "--png", png, "--html", html)
    assert ran.code == 0, ran.err
    saved, truth = steer.HeadMap.load(out), by_call(measures=["ablation", "attention"], gradient=True)
    assert saved.measures == truth.measures
    for name in truth.measures:
        assert torch.equal(saved.values[name], truth.values[name])
        assert torch.equal(saved.errors[name], truth.errors[name])
    saved.check_fits(steer.zoo.load()[0])
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</html>" in html.read_text()
    for name in truth.measures:
        layer, head = truth.top(1, name)[0]
        table = ran.out.split(f" {name} ", 1)[1]
        assert f"{truth.values[name][layer, head]:.4g}" in table.split("layer", 1)[0]
    assert not (tmp_path / "heads.safetensors.checkpoints").exists()


def test_json(steer_cli, tmp_path):
    out = tmp_path / "heads.safetensors"
    ran = steer_cli(*ASKED, "--corrupt", "remove", "--gradient", "--out", out, "--top", 4, "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    truth = by_call(corrupt="remove", gradient=True)
    rows = said["top"]["indirect_effect"]
    assert [(row["layer"], row["head"]) for row in rows] == truth.top(4)
    assert [row["value"] for row in rows] == [float(truth.values["indirect_effect"][place]) for place in truth.top(4)]
    assert (said["samples"], said["out"]) == (3, str(out))


def test_an_interrupted_run_is_gone_on_with(steer_cli, tmp_path, monkeypatch):
    asked = (*ASKED, "--measure", "ablation")
    assert steer_cli(*asked, "--out", tmp_path / "whole").code == 0
    real, calls = patching.effects, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(patching, "effects", interrupted)
    ran = steer_cli(*asked, "--out", tmp_path / "parts")
    assert ran.code == 130
    assert "the same command goes on from" in ran.err
    assert not (tmp_path / "parts").exists()
    assert steer_cli(*asked, "--out", tmp_path / "parts").code == 0
    assert len(calls) == 4
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--measure", "ablatoin"), "did you mean 'ablation'?"),
        (("--measure", ","), "no measure was asked for"),
        (("--corrupt", "shufle"), "did you mean 'shuffle'?"),
        (("--scale", "logits"), "log_probability"),
        (("--attention", "both"), "cross"),
        (("--shots", 1), "2 demonstrations or more"),
        (("--png", "nowhere/heads.png"), "there is no folder"),
        (("--html", "."), "is a folder"),
    ],
)
def test_what_cannot_be_is_told(steer_cli, tmp_path, words, said):
    ran = steer_cli(*ASKED, "--out", tmp_path / "heads.safetensors", *words)
    assert ran.code == 1
    assert said in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_picture_needs_matplotlib_and_is_refused_before_anything_runs(steer_cli, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    ran = steer_cli(*ASKED, "--out", tmp_path / "heads.safetensors", "--png", tmp_path / "heads.png")
    assert ran.code == 1
    assert "steer-vlm[experiments]" in ran.err
    assert list(tmp_path.iterdir()) == []
