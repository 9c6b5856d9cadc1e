"""Two processes share a model by transformers' tensor parallelism; each must give what one process alone gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import steer
from steer import zoo
from tests.distributed.tp_cases import CASES, gradient, names_for, outcome
from tests.distributed.tp_methods import METHODS
from tests.distributed.tp_models import MODELS, build, inputs
from tests.training.processes import PATIENT, free_port, kill, start

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@dataclass
class Both:
    """What the two processes found, and where the models are."""

    folder: Path
    tensors: list[dict[str, torch.Tensor]]
    notes: list[dict[str, Any]]

    def check(self, name: str, truth: dict[str, torch.Tensor]) -> None:
        for found in self.tensors:
            for key, tensor in truth.items():
                torch.testing.assert_close(found[f"{name}/{key}"], tensor, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Both:
    folder, out = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("found")
    for name in MODELS:
        build(name).save_pretrained(folder / name)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    program = ["tests/distributed/tp_run.py", str(folder), str(out)]
    running = [start(program, RANK=rank, LOCAL_RANK=rank, **shared) for rank in "01"]
    try:
        said = [process.communicate(timeout=PATIENT)[0] for process in running]
        assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    finally:
        for process in running:
            kill(process)
    tensors = [load_file(out / f"{rank}.safetensors") for rank in "01"]
    return Both(folder, tensors, [json.loads((out / f"{rank}.json").read_text()) for rank in "01"])


def _alone(folder: Path) -> Any:
    more = {"dtype": torch.float64, "experts_implementation": "eager"}
    return AutoModelForImageTextToText.from_pretrained(folder, **more).eval()


@pytest.mark.parametrize("name", MODELS)
def test_each_process_gives_what_one_alone_gives(both, name) -> None:
    """Logits of a prompt, of every step of `generate`, and the report's counts; afterwards nothing is left."""
    model = _alone(both.folder / name)
    model_map = steer.inspect(model)
    plain, _ = outcome(model, inputs(name), [])
    for case in names_for(name):
        truth, lines = outcome(model, inputs(name), CASES[case](model_map))
        both.check(f"{name}/{case}", truth)
        assert not torch.allclose(truth["steps"][1:], plain["steps"][1:], atol=1e-3), f"{case} does nothing"
        assert [notes[f"{name}/{case}"] for notes in both.notes] == [json.loads(json.dumps(lines))] * 2, case
    if name != "mqa":  # transformers itself loses gradients of keys that are in every process
        both.check(f"{name}/gradient", gradient(model, inputs(name)))
    assert [notes[f"{name}/restored"] for notes in both.notes] == [True, True]


@pytest.mark.parametrize("name", MODELS)
def test_a_map_is_of_the_model_and_not_of_a_process(both, name) -> None:
    truth = json.loads(json.dumps(steer.inspect(_alone(both.folder / name)).to_dict()))
    assert [notes[f"{name}/map"] for notes in both.notes] == [truth, truth]


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return _alone(zoo.folder()), AutoProcessor.from_pretrained(zoo.folder())


@pytest.mark.parametrize("name", METHODS)
def test_methods_fit_remember_and_answer_alike(both, shipped, name) -> None:
    both.check(f"method {name}", METHODS[name](*shipped))


REFUSED = {
    "keys in every process": ["MappingError", "self_attn", "4 key-value heads"],
    "a head cut in two": ["MappingError", "k_proj", "1 heads", "2 processes"],
    "along the tokens": ["MappingError", "input_layernorm", "sequence parallel"],
    "scores in parts": ["MappingError", "lm_head"],
    "a mask where keys are in every process": ["MappingError", "key_bias", "self_attn", "mask"],
    "eight heads over packed columns": ["MappingError", "q_proj", "PackedColwiseParallel"],
    "training": ["InterventionError", "tensor parallelism", "gradient"],
    "recording for training": ["InterventionError", "tensor parallelism", "gradient"],
    "folding": ["InterventionError", "tp_plan", "fold"],
    "no such head": ["UnknownNameError", "head '8'"],
    "a vector for the heads of a process": ["InterventionError", "[4, 6]", "[8, 6]"],
    "fit by gradient": ["SteerError", "live", "tp_plan"],
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_by_every_process_before_it_runs(both, what) -> None:
    for notes in both.notes:
        assert all(fact in notes[what] for fact in REFUSED[what]), notes[what]
