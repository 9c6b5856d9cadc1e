"""docs/vectors.md: every block runs in order in one folder, and the table says what the methods are."""

from __future__ import annotations

import re

import pytest
import torch

import steer
from steer.training import Learned, loop

from .blocks import ROOT

PAGE = (ROOT / "docs/vectors.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
TABLE = {
    name: [cell.strip() for cell in rest.split(" | ")]
    for name, rest in re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, flags=re.MULTILINE)
}
NUMBERS, FOLDS, PAPER = 3, 5, 7
METHODS = {name: info.cls for name, info in steer.methods().items() if info.cls.__module__.startswith("steer_vectors.")}
LEARNED = [name for name, cls in METHODS.items() if issubclass(cls, Learned) and name != "gate"]


def run_cut_off(body: str, namespace: dict, monkeypatch) -> None:
    """Run a block that is interrupted, as by Ctrl-C, right after its fit's second checkpoint."""
    keep, kept = loop._Run._keep, []

    def keep_twice(self):
        keep(self)
        kept.append(self.now.step)
        if len(kept) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop._Run, "_keep", keep_twice)
        exec(body, namespace)
    assert kept == [6, 12]


def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for language, body in BLOCKS:
        if language == "python":
            if 'folder="live-fit"' in body:
                run_cut_off(body, namespace, monkeypatch)
            exec(body, namespace)
    assert [language for language, _ in BLOCKS] == [*["python"] * 3, "sh"]
    assert namespace["eight_shot"] > 0.5
    for shots, tokens in ((0, 10), (8, 106)):
        shown = steer.Demonstrations(tuple(namespace["train"]), shots).for_queries(namespace["test"][:1])
        batch = steer.prompts.encode(namespace["model"], namespace["processor"], shown)
        assert batch.inputs["input_ids"].shape[1] == tokens
    history = namespace["live"].provenance["training"]["history"]
    assert [look["step"] for look in history] == [6, 12, 18, 24]
    assert history[-1]["dev"] < history[0]["dev"]
    guarded, test, counts = (namespace[key] for key in ("guarded", "test", "counts"))
    said = guarded.decide(namespace["model"], namespace["processor"], [*test[:2], *counts])
    assert list(map(bool, said)) == [True, True, False, False]


def test_every_method_of_the_package_has_a_row():
    assert list(TABLE) == list(dict.fromkeys(TABLE))
    assert set(TABLE) == set(METHODS)
    assert all(len(cells) == 8 for cells in TABLE.values())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_row_names_the_methods_paper(name):
    assert name == "joint" or f"]({METHODS[name].paper})" in TABLE[name][PAPER]


@pytest.fixture(scope="module")
def model():
    return steer.zoo.load("tiny-vlm")[0]


def started(name: str, model_map: steer.ModelMap, **config) -> Learned:
    """A learned method with tensors that do something, not fitted."""
    method, random = steer.create(name, **config), torch.Generator().manual_seed(0)
    start = method.initial(model_map, random)
    method.tensors = {key: value + 0.1 * torch.randn(value.shape, generator=random) for key, value in start.items()}
    return method


@pytest.mark.parametrize("name", LEARNED)
def test_the_table_counts_the_learned_numbers(name, model):
    method = started(name, steer.inspect(model))
    text = model.config.text_config
    sizes = {"L": text.num_hidden_layers, "H": text.num_attention_heads, "K": text.num_key_value_heads}
    sizes |= {"D": text.hidden_size, "d": text.head_dim}
    sizes |= {"r": getattr(method, "rank", 0), "n": getattr(method, "virtual", 0)}
    assert eval(TABLE[name][NUMBERS].strip("`"), sizes) == method.number_of_parameters()


@pytest.mark.parametrize("name", LEARNED)
def test_the_table_says_what_folds(name, model):
    said = TABLE[name][FOLDS]
    with_field = re.fullmatch(r"with `(\w+)=False`", said)
    if with_field:
        steer.fold(model, started(name, steer.inspect(model), **{with_field.group(1): False}))
    if said == "yes":
        steer.fold(model, started(name, steer.inspect(model)))
    else:
        with pytest.raises(steer.SteerError):
            steer.fold(model, started(name, steer.inspect(model)))
