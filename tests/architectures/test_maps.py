"""Every architecture at full size on the meta device: the map against what attention received in real forwards.

`truth.json` is recorded by record_truth.py, which knows nothing of steer: per attention module, what a probing
attention function received and the projection that took its result. `towers.json` says which towers each class has,
with their blocks and mixers; it was checked by hand against the modeling code.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import PretrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

import steer
from steer.model_map import Attention, ModelMap, Tower
from steer.testing._configs import NEEDS_TIMM, every_class, full_model, missing

from .truth import unpack

HERE = Path(__file__).parent
TRUTH = json.loads((HERE / "truth.json").read_text())
TOWERS = json.loads((HERE / "towers.json").read_text())

# Classes of attention outside the registry whose q, k or v no layer gives, and why: there is none.
UNREACHABLE: dict[str, str] = {}


@dataclass(frozen=True)
class Mapped:
    """A model, its map, and what it looked like before and after."""

    name: str
    model: nn.Module
    model_map: ModelMap
    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(scope="module", params=every_class(), ids=lambda cls: cls.__name__)
def mapped(request: pytest.FixtureRequest) -> Mapped:
    if reason := missing(request.param.__name__):
        pytest.skip(reason)
    model = full_model(request.param)
    before = _traces(model)
    return Mapped(request.param.__name__, model, steer.inspect(model), before, _traces(model))


def test_attention_is_what_the_attention_function_receives(mapped: Mapped) -> None:
    truth = unpack(TRUTH[mapped.name])
    found = {attention.path: attention for attention in _softmax(mapped.model_map)}
    loose = {note.rpartition(" ")[2] for note in mapped.model_map.notes}
    assert set(found) == set(truth) - loose
    assert loose <= set(truth)
    for path, attention in found.items():
        (heads, kv_heads, head_dim, value_dim), out_proj = truth[path]
        assert (attention.num_heads, attention.num_kv_heads) == (heads, kv_heads), path
        if attention.head_dim is None:  # attention over channels: a "token" there is a feature of the head
            assert (attention.value_dim, attention.out_proj) == (32, f"{path}.proj"), path
        else:
            assert (attention.head_dim, attention.value_dim, attention.out_proj) == (head_dim, value_dim, out_proj), (
                path
            )


def test_projections_have_the_features_of_their_heads(mapped: Mapped) -> None:
    for attention in _softmax(mapped.model_map):
        for part, heads, width in (
            (attention.q, attention.num_heads, attention.head_dim),
            (attention.k, attention.num_kv_heads, attention.head_dim),
            (attention.v, attention.num_kv_heads, attention.value_dim),
        ):
            if part is not None and part.index is None:
                assert mapped.model.get_submodule(part.path).out_features == heads * width, part
            elif part is not None:
                slices, rest = divmod(mapped.model.get_submodule(part.path).out_features, heads * width)
                assert rest == 0, part
                assert part.index < slices, part


def test_attention_outside_the_registry_has_projections(mapped: Mapped) -> None:
    """There, q, k and v can only be changed where they leave a linear layer; all three, each its own."""
    for attention in _softmax(mapped.model_map):
        reason = UNREACHABLE.get(type(mapped.model.get_submodule(attention.path)).__name__)
        if not attention.registry and reason is None:
            parts = (attention.q, attention.k, attention.v)
            assert None not in parts, attention.path
            assert len(set(parts)) == 3, attention.path


def test_towers_are_all_there_with_the_mixers_of_their_layers(mapped: Mapped) -> None:
    assert {name: _in_words(tower) for name, tower in mapped.model_map.towers.items()} == TOWERS[mapped.name]


def test_every_path_leads_to_a_module(mapped: Mapped) -> None:
    for tower in mapped.model_map.towers.values():
        paths = [tower.path, tower.embeddings]
        for layer in tower.layers:
            paths += [layer.path, layer.mlp, layer.attn_out, layer.cross_attn_out, layer.mlp_out]
        for path in paths:
            assert path is None or mapped.model.get_submodule(path) is not None
        assert [layer.index for layer in tower.layers] == list(range(len(tower.layers)))


def test_inspecting_leaves_the_model_untouched(mapped: Mapped) -> None:
    assert mapped.before == mapped.after


def test_the_largest_takes_seconds() -> None:
    """Under 3 s on one free core; the guard is wider because test machines are busy."""
    model = full_model({cls.__name__: cls for cls in every_class()}["InklingForConditionalGeneration"])
    start = time.process_time()
    assert steer.inspect(model).num_parameters > 10**12
    assert time.process_time() - start < 10


def test_the_records_cover_every_class_that_builds() -> None:
    timm = [name for name in NEEDS_TIMM if name not in TRUTH]
    assert set(TOWERS) == set(TRUTH) == {cls.__name__ for cls in every_class()} - set(timm)


def _softmax(model_map: ModelMap) -> list[Attention]:
    return [attention for _, _, attention in model_map.attentions() if attention.kind == "softmax"]


def _in_words(tower: Tower) -> str:
    """E.g. `model.layers, 32 x 4096: 24 linear, 8 softmax`."""
    kinds: Counter[str] = Counter()
    for layer in tower.layers:
        kinds[layer.attention.kind if layer.attention else "no mixer"] += 1
        kinds["cross"] += layer.cross_attention is not None
        kinds["no mlp"] += layer.mlp is None
    kinds["no mixer"] -= sum(layer.attention is None and layer.cross_attention is not None for layer in tower.layers)
    words = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()) if count)
    return f"{tower.path}, {len(tower.layers)} x {tower.width}: {words}"


def _traces(model: nn.Module) -> dict[str, Any]:
    """What a session or a careless look would change."""
    modules = list(model.modules())
    hooks = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    configs = [value for module in modules for value in vars(module).values() if isinstance(value, PretrainedConfig)]
    return {
        "hooks": sum(len(getattr(module, name)) for module in modules for name in hooks),
        "forwards": sum("forward" in vars(module) for module in modules),
        "configs": [id(config) for config in configs],
        "implementations": [config._attn_implementation for config in configs],
        "keys": (list(AttentionInterface()), list(AttentionMaskInterface())),
        "training": [module.training for module in modules],
    }
