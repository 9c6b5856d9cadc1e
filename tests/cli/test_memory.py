"""`steer memory` saves what the library would have built, shows what it holds, and answers from it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import steer
from steer.memory import Kept, Memory
from steer.memory.files import FILE_NAMES
from steer.memory.pictures import kept_share, patches_of
from tests.engine.families import FAMILIES

LEAN = ("--no-certificate", "--json")
READ = ("memory", "build", "--model", "tiny-vlm", "--data", "zoo:colour", "--limit", 14)
BUILD = (*READ, "--method", "emloc")


@pytest.fixture(scope="module")
def subject():
    return steer.zoo.load()


@pytest.fixture(scope="module")
def folder(subject, tmp_path_factory) -> Path:
    """A memory of twelve demonstrations, built by the command."""
    from steer.cli import main

    made = tmp_path_factory.mktemp("memory")
    with pytest.raises(SystemExit) as left:
        main([*map(str, BUILD), "--probes", "2", "--config", "max_divergence=0.02", "--seed", "3", "--out", str(made)])
    assert left.value.code in (0, None)
    return made


def test_the_saved_memory_is_the_one_that_the_library_builds(subject, folder):
    model, processor = subject
    found = steer.zoo.examples("colour", "demo", 14, seed=3)
    loaded = Memory.load(folder, model, processor=processor)
    info = loaded.info
    assert info["data"] == {"source": "zoo:colour", "seed": 3, "limit": 14, "probes": 2}
    assert (info["method"], info["config"]["max_divergence"]) == ("emloc", 0.02)
    assert (info["demonstrations"]["examples"], info["certificate"]["held_out"]["tokens"]) == (12, 2)
    from steer.cli.memory import _demonstrations

    shown, held = _demonstrations("zoo:colour", 3, 14, 2)
    words = [(one.question, one.answer, one.images[0].tobytes()) for one in (*shown, *held)]
    assert sorted(words) == sorted((one.question, one.answer, one.images[0].tobytes()) for one in found)
    mine = steer.create("emloc", max_divergence=0.02).build(model, processor, shown, probes=held, progress=False)
    assert mine.places == loaded.places
    for layer in mine.places:
        one, two = mine.kept(layer), loaded.kept(layer)
        assert torch.equal(one.counts(), two.counts())
        assert torch.equal(one.slots, two.slots)
        torch.testing.assert_close(one.keys, two.keys)
    assert info["certificate"]["held_out"]["mean"] == pytest.approx(mine.info["certificate"]["held_out"]["mean"])


def test_what_is_shown_is_what_is_kept(steer_cli, subject, folder):
    loaded = Memory.load(folder, subject[0])
    data = json.loads(steer_cli("memory", "show", folder, "--json").out)
    assert {path.name for path in folder.iterdir()} == set(FILE_NAMES)
    assert (data["tokens"], data["image_tokens"]) == (loaded.length, int(loaded.images.sum()))
    assert data["next_position"] == [loaded.length]
    for layer in data["layers"]:
        counts = loaded.kept(layer["layer"]).counts()
        assert (layer["least"], layer["most"]) == (int(counts.min()), int(counts.max()))
        assert layer["share"] == pytest.approx(loaded.share()[layer["layer"]])
    assert data["bytes"] == sum(layer["bytes"] for layer in data["layers"])
    assert data["bytes_on_disk"] == (folder / "steer_memory.safetensors").stat().st_size
    table = steer_cli("memory", "show", folder).out
    for fact in ("certificate on its demonstrations", "certificate on held-out questions", "method emloc"):
        assert fact in table


def test_json_of_build_is_that_of_show_and_more(steer_cli, tmp_path):
    ran = steer_cli(*READ, "--method", "knorm", "--config", "keep=0.5", "--chunk", 7, "--out", tmp_path / "m", *LEAN)
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    shown = json.loads(steer_cli("memory", "show", tmp_path / "m", "--json").out)
    assert {name: data[name] for name in shown} == shown
    assert data["config"]["keep"] == 0.5
    assert data["certificate"] is None


def test_ask_answers_as_the_library_does(steer_cli, subject, folder, tmp_path):
    model, processor = subject
    query = steer.zoo.examples("colour", "test", 1)[0]
    query.images[0].save(tmp_path / "q.png")
    answer = Memory.load(folder, model).ask(model, processor, [query])[0]
    arguments = (
        "memory",
        "ask",
        folder,
        "--model",
        "tiny-vlm",
        "--prompt",
        query.question,
        "--image",
        tmp_path / "q.png",
    )
    assert steer_cli(*arguments).out == f"{answer}\n"
    assert json.loads(steer_cli(*arguments, "--json").out)["answer"] == answer
    assert answer


def test_a_layer_that_cannot_be_pruned_has_its_bytes_and_no_share(steer_cli, tmp_path):
    family = FAMILIES["qwen3_5"]
    model = family.model()
    Memory.empty(model).read(model, family.prompt(6)).bind(model).save(tmp_path)
    data = json.loads(steer_cli("memory", "show", tmp_path, "--json").out)
    first, last = data["layers"][0], data["layers"][3]
    assert (first["class"], first["share"], last["share"]) == ("LinearAttentionLayer", None, 1.0)
    assert first["bytes"] == (64 * 4 + 4 * 8 * 8) * 4
    ran = steer_cli("memory", "show", tmp_path)
    assert "all, LinearAttentionLayer" in ran.out
    assert "no certificate" in ran.out


def test_an_empty_memory_is_shown(steer_cli, tmp_path):
    model = FAMILIES["llava"].model()
    Memory.empty(model).bind(model).save(tmp_path)
    assert steer_cli("memory", "show", tmp_path).code == 0
    pytest.importorskip("matplotlib")
    ran = steer_cli("memory", "show", tmp_path, "--png", tmp_path / "x.png")
    assert (ran.code, "nothing to draw" in ran.err) == (1, True)


def test_pictures_are_written(steer_cli, folder, tmp_path):
    pytest.importorskip("matplotlib")
    plain = steer_cli("memory", "show", folder, "--png", tmp_path / "map.png")
    over = steer_cli("memory", "show", folder, "--png", tmp_path / "over.png", "--data", "zoo:colour")
    assert (plain.code, over.code) == (0, 0), plain.err + over.err
    sizes = [Image.open(tmp_path / name).size for name in ("map.png", "over.png")]
    assert sizes[1][1] > sizes[0][1] > 100


WRONG = {
    "a method that makes none": (
        (*READ, "--method", "icv", "--out", "o"),
        ("'icv'", "known: ", "emloc", "steer fit icv"),
    ),
    "no method": ((*READ, "--method", "emlok", "--out", "o"), ("'emlok'", "did you mean 'emloc'")),
    "no field": ((*BUILD, "--config", "max_divergance=1", "--out", "o"), ("did you mean 'max_divergence'",)),
    "no value": ((*BUILD, "--config", "sinks=few", "--out", "o"), ("--config sinks=few", "int")),
    "all held out": ((*BUILD, "--probes", 14, "--out", "o"), ("14 examples", "--probes")),
    "probes for nothing": ((*BUILD, "--probes", 2, "--no-certificate", "--out", "o"), ("--probes", "--no-certificate")),
    "no folder": (("memory", "show", "nowhere"), ("nowhere", "steer_memory.json")),
    "another model": (("memory", "ask", "FOLDER", "--model", "OTHER", "--prompt", "what?"), ("no zoo model",)),
    "data without a picture": (("memory", "show", "FOLDER", "--data", "zoo:colour"), ("--png",)),
    "other data": (("memory", "show", "FOLDER", "--png", "x.png", "--data", "zoo:count"), ("zoo:count", "differ")),
    "no folder for the picture": (("memory", "show", "FOLDER", "--png", "no/x.png"), ("no folder",)),
    "no picture": (
        ("memory", "ask", "FOLDER", "--model", "tiny-vlm", "--prompt", "?", "--image", "no.png"),
        ("no.png",),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_say_what_there_is(steer_cli, folder, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    arguments, facts = WRONG[name]
    ran = steer_cli(*(folder if one == "FOLDER" else one for one in arguments))
    assert ran.code == 1
    assert all(fact in ran.err for fact in facts), ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_it_is_said_how_to_get_it(steer_cli, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ran = steer_cli("memory", "show", folder, "--png", tmp_path / "x.png")
    assert ran.code == 1
    assert "pip install 'steer-vlm[experiments]'" in ran.err


# --- what the pictures are made of


def test_the_share_of_heads_that_kept_a_token():
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(2, 3, 9, generator=generator) < torch.tensor([0.3, 0.5, 0.8])[:, None]
    keep[..., 8] = True
    where = torch.arange(9)[None, None]
    kept = steer.memory.pick(torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4), where, keep)
    assert kept.valid is not None
    for row in range(2):
        assert torch.equal(kept_share(kept, 9, row), keep[row].float().mean(0))
    alike = Kept(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4), torch.tensor([[[1, 4]]]))
    assert kept_share(alike, 6).tolist() == [0, 1, 0, 0, 1, 0]


def test_whose_tokens_are_whose():
    images = torch.tensor([0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0]).bool()
    (one, shape), (two, wide) = patches_of(images, [(32, 32), (60, 40)])
    assert (one.tolist(), shape) == ([1, 2, 3, 4], (2, 2))
    assert (two.tolist(), wide) == ([7, 8, 9, 10, 11, 12], (2, 3))
    # pictures side by side have no gap between them
    halves = patches_of(torch.ones(8, dtype=torch.bool), [(8, 8), (8, 8)])
    assert [tokens.tolist() for tokens, _ in halves] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [(9, (7, 7), (3, 3)), (12, (40, 30), (3, 4)), (12, (30, 40), (4, 3)), (1, (5, 4), (1, 1))],
)
def test_patches_lie_in_the_shape_that_is_nearest_to_the_picture(count, size, grid):
    rows, columns = patches_of(torch.ones(count, dtype=torch.bool), [size])[0][1]
    assert (rows, columns) == grid
    best = min(
        (abs(math.log(c / (count // c) / (size[0] / size[1]))), c) for c in range(1, count + 1) if count % c == 0
    )
    assert columns == best[1]


@pytest.mark.parametrize(("count", "sizes"), [(7, [(8, 8)]), (5, [(8, 8), (8, 8)]), (0, [(8, 8)]), (4, [])])
def test_tokens_that_are_no_patches_of_the_pictures_are_refused(count, sizes):
    with pytest.raises(steer.SteerError, match="tokens"):
        patches_of(torch.ones(count, dtype=torch.bool), sizes)
