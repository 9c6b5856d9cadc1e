"""Models larger than one device: layers on a disk or held back in memory, brought in while they run."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import steer
from steer import positions, sites, zoo
from tests.distributed.tp_cases import CASES, FEW, outcome
from tests.distributed.tp_methods import METHODS
from tests.distributed.tp_models import build, inputs

accelerate = pytest.importorskip("accelerate")


@cache
def alone(name: str) -> Any:
    """The model whole, in fp64."""
    return build(name).double()


def _homes(model: Any, away: str) -> dict[str, str]:
    """A device map: the text tower's layers but the first, and the output, are away; everything else is not."""
    held = [*(layer.path for layer in steer.inspect(model).tower().layers[1:]), "lm_head"]

    def below(path: str) -> dict[str, str]:
        inside = [one for one in held if f"{one}.".startswith(f"{path}." if path else "")]
        if path in held or not inside:
            return {path: away if inside else "cpu"}
        names = [f"{path}.{name}".strip(".") for name, _ in model.get_submodule(path).named_children()]
        return {key: home for name in names for key, home in below(name).items()}

    return below("")


def disk(name: str, folder: Path) -> Any:
    """Layers and the output on a disk; accelerate reads them before each of their forwards and forgets them after."""
    model = build(name).double()
    return accelerate.dispatch_model(model, _homes(model, "disk"), main_device="cpu", offload_dir=str(folder))


def offloaded(name: str, folder: Path) -> Any:
    """Every weight is kept aside, and meta in the model whenever its module does not run."""
    return accelerate.cpu_offload(build(name).double(), execution_device="cpu")


def loaded(name: str, folder: Path) -> Any:
    """As a user has it: `from_pretrained` with a map and a folder."""
    build(name).double().save_pretrained(folder / "saved")
    homes = _homes(alone(name), "disk")
    return AutoModelForImageTextToText.from_pretrained(
        folder / "saved", device_map=homes, offload_folder=folder / "away", dtype=torch.float64
    ).eval()


WAYS: dict[str, Callable[[str, Path], Any]] = {"disk": disk, "offloaded": offloaded, "loaded": loaded}


@cache
def truth_of(name: str, case: str) -> Any:
    return outcome(alone(name), inputs(), CASES[case](steer.inspect(alone(name))))


@cache
def spread(way: str, name: str) -> Any:
    """A model over two places; what it keeps on a disk lives as long as the tests."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return WAYS[way](name, Path(folder.name))


PLACES = [("disk", "llama"), ("disk", "qwen2_5_vl"), ("offloaded", "llama"), ("loaded", "qwen2_5_vl")]


@pytest.mark.parametrize(
    ("way", "name", "case"),
    [(*place, case) for place in PLACES for case in (CASES if place[0] == "disk" else FEW)],
)
def test_every_intervention_is_what_it_is_on_one_device(way, name, case) -> None:
    """Logits of a prompt and of every step of `generate`; afterwards the model is what it was."""
    model, whole = spread(way, name), alone(name)
    away = [key for key, parameter in model.named_parameters() if parameter.is_meta]
    assert len(away) > 10
    model_map = steer.inspect(model)
    assert model_map.fingerprint() == steer.inspect(whole).fingerprint()
    found, lines = outcome(model, inputs(), CASES[case](model_map))
    truth, told = truth_of(name, case)
    for key, tensor in truth.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)
    assert lines == told
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs()).logits, whole(**inputs()).logits, rtol=1e-9, atol=1e-9)
    assert [key for key, parameter in model.named_parameters() if parameter.is_meta] == away


@pytest.mark.parametrize(("way", "name"), PLACES)
def test_recordings_are_what_they_are_on_one_device(way, name) -> None:
    asked = (
        sites.head_out(), sites.head_q(), sites.head_v(heads=[1]), sites.resid_out(), sites.mlp_out(), sites.cache(),
        sites.attention(positions=positions.last_prompt()), sites.logits(),
    )  # fmt: skip
    found = []
    for model in (spread(way, name), alone(name)):
        with torch.no_grad(), steer.record(model, *asked) as acts:
            model(**inputs())
        found.append({tuple(key): value for key, value in acts.items()})
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> tuple[Any, Any, Any]:
    """The shipped model over two places and whole, and its processor."""
    more: dict[str, Any] = {"dtype": torch.float64}
    whole = AutoModelForImageTextToText.from_pretrained(zoo.folder(), **more).eval()
    homes = {**_homes(whole, "disk"), "lm_head": "cpu"}  # its weights are those of the embeddings
    folder = tmp_path_factory.mktemp("away")
    split = AutoModelForImageTextToText.from_pretrained(zoo.folder(), device_map=homes, offload_folder=folder, **more)
    assert any(parameter.is_meta for parameter in split.parameters())
    return split.eval(), whole, AutoProcessor.from_pretrained(zoo.folder())


@pytest.mark.parametrize("name", [*METHODS])
def test_methods_fit_remember_and_answer_alike(shipped, name) -> None:
    split, whole, processor = shipped
    found = METHODS[name](split, processor)
    for key, tensor in METHODS[name](whole, processor).items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-5)
