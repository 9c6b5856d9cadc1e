"""A method goes to a folder or the hub and comes back as it was, or not at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar
from unittest import mock

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

import steer
from steer import nesting
from steer._config import decode_config, encode_config
from steer.errors import FileFormatError, InterventionError, SteerError, UnknownNameError
from steer.files import CARD_NAME, FILE_NAMES, JSON_NAME, TENSORS_NAME

from .toy import Toy, ToyPlugin, fitted, toy_map


@dataclass
class Wide:
    """Fields as a plugin may annotate them."""

    name: ClassVar[str] = "wide"
    some: Any
    bounded: Annotated[int, "small"]
    pair: tuple
    listed: list[int]
    other: object


@pytest.fixture(autouse=True)
def _toy_is_installed(plugged):
    plugged(ToyPlugin(), "toy-plugin")


def same(a: Toy, b: Toy) -> bool:
    """Equal configuration, provenance and, bit by bit, tensors."""
    tensors = a.tensors.keys() == b.tensors.keys() and all(
        a.tensors[name].dtype == b.tensors[name].dtype and torch.equal(a.tensors[name], b.tensors[name])
        for name in a.tensors
    )
    return a == b and a.provenance == b.provenance and tensors


def test_a_folder_holds_json_safetensors_and_a_card_and_loads_as_it_was(tmp_path):
    method = fitted()
    method.save_pretrained(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILE_NAMES)
    for loaded in (steer.load(folder), steer.load(str(folder)), Toy.from_pretrained(folder)):
        assert isinstance(loaded, Toy)
        assert same(loaded, method)
    record = json.loads((folder / JSON_NAME).read_text())
    assert record["method"] == "toy"
    assert record["provenance"]["fingerprint"] == toy_map().fingerprint()
    assert record["provenance"]["seed"] == 3
    assert record["provenance"]["data"]["examples"] == 1
    assert record["provenance"]["steer_version"] == steer.__version__
    with safe_open(folder / TENSORS_NAME, "pt") as file:
        assert set(file.keys()) == {"vectors", "count"}
    card = (folder / CARD_NAME).read_text()
    assert card.startswith("---\nlibrary_name: steer\n")
    assert Toy.paper in card
    assert Toy.summary in card


@given(
    strength=st.floats(allow_nan=False, allow_infinity=False),
    layers=st.one_of(st.just("all"), st.lists(st.integers(0, 99)).map(tuple)),
    note=st.one_of(st.none(), st.text()),
    options=st.one_of(st.none(), st.dictionaries(st.text(), st.integers())),
    shape=st.lists(st.integers(0, 4), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]),
    seed=st.integers(0, 2**32),
)
def test_any_configuration_and_tensor_comes_back(tmp_path, strength, layers, note, options, shape, dtype, seed):
    method = Toy(strength, layers, note, options)
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    # A transposed view and a tensor that shares its storage: neither may be saved as its neighbour's bytes.
    method.tensors = {"a": tensor, "b": tensor.transpose(0, -1) if tensor.ndim else tensor, "c": tensor}
    method.save_pretrained(tmp_path)
    assert same(steer.load(tmp_path), method)


def test_saving_and_loading_never_touch_pickle(tmp_path, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("pickle was used")

    for module, name in [(pickle, "load"), (pickle, "loads"), (pickle, "dump"), (torch, "load"), (torch, "save")]:
        monkeypatch.setattr(module, name, forbidden)
    fitted().save_pretrained(tmp_path)
    assert same(steer.load(tmp_path), fitted())


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_an_interrupted_save_is_the_old_one_the_new_one_or_an_error(tmp_path, monkeypatch, fails_at):
    old, new = fitted(), fitted()
    new.strength, new.tensors["vectors"] = 9.0, torch.zeros(2, 8)
    old.save_pretrained(tmp_path)
    real, calls = os.replace, []

    def replace(*args):
        calls.append(args)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        new.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILE_NAMES), "a temporary file was left"
    try:
        loaded = steer.load(tmp_path)
    except FileFormatError:
        assert fails_at == 2
    else:
        assert same(loaded, old if fails_at == 1 else new)


def test_a_disk_that_is_full_leaves_the_old_save(tmp_path, monkeypatch):
    fitted().save_pretrained(tmp_path)
    new = fitted()
    new.strength = 9.0

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        new.save_pretrained(tmp_path)
    assert same(steer.load(tmp_path), fitted())
    assert len(list(tmp_path.iterdir())) == len(FILE_NAMES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nan", torch.tensor([1.0, float("nan")])),
        ("infinite", torch.tensor(float("inf"))),
        ("meta", torch.empty(2, device="meta")),
        ("sparse", torch.eye(2).to_sparse()),
        ("list", [1.0, 2.0]),
    ],
)
def test_a_tensor_that_cannot_be_saved_is_named_and_nothing_is_written(tmp_path, name, value):
    method = Toy()
    method.tensors = {name: value}
    with pytest.raises(InterventionError, match=name):
        method.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, object(), torch.zeros(2), {"deep": [object()]}])
def test_a_field_that_json_cannot_hold_is_named(tmp_path, value):
    with pytest.raises(InterventionError, match="options"):
        Toy(options=value).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_provenance_that_json_cannot_hold_is_an_error_and_nothing_is_written(tmp_path):
    method = fitted()
    method.provenance["seen"] = object()
    with pytest.raises(InterventionError, match="'toy' cannot be saved"):
        method.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_value_that_the_class_refuses_is_an_error_of_the_file(tmp_path, monkeypatch):
    fitted().save_pretrained(tmp_path)

    def refuse(self, **fields):
        raise ValueError("strength must be above 1")

    monkeypatch.setattr(Toy, "__init__", refuse)
    with pytest.raises(FileFormatError, match="'toy' is not valid: strength must be above 1"):
        steer.load(tmp_path)


def test_a_wrapped_method_of_no_plugin_is_refused():
    class Loose(Toy):
        pass

    with pytest.raises(SteerError, match="no installed plugin"):
        nesting.pack([Loose()])


def test_fields_of_every_annotation_come_back_from_json():
    config = json.loads(json.dumps(encode_config(Wide({"a": [1]}, 2, (3, "x"), range(3), "as it is"))))
    assert Wide(**decode_config(Wide, config)) == Wide({"a": [1]}, 2, (3, "x"), [0, 1, 2], "as it is")
    with pytest.raises(FileFormatError, match="bounded"):
        decode_config(Wide, {"bounded": "2"})


def test_push_to_hub_uploads_what_load_downloads(tmp_path, monkeypatch):
    hub = tmp_path / "hub"

    # Autospecs refuse arguments that huggingface_hub does not have.
    create = mock.create_autospec(huggingface_hub.HfApi.create_repo)
    create.return_value = huggingface_hub.RepoUrl("https://huggingface.co/me/toy")
    upload = mock.create_autospec(huggingface_hub.HfApi.upload_folder)

    def copy(self, *, folder_path, **kwargs):
        shutil.copytree(folder_path, hub)
        return mock.Mock(commit_url="https://huggingface.co/me/toy/commit/1")

    upload.side_effect = copy
    download = mock.create_autospec(huggingface_hub.snapshot_download, return_value=str(hub))
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    address = fitted().push_to_hub("me/toy", private=True)
    assert address == "https://huggingface.co/me/toy/commit/1"
    assert create.call_args.kwargs["private"] is True
    assert upload.call_args.kwargs["repo_id"] == "me/toy"
    assert same(steer.load("me/toy", revision="main"), fitted())
    assert download.call_args.args == ("me/toy",)
    assert set(download.call_args.kwargs["allow_patterns"]) == set(FILE_NAMES)


@pytest.mark.parametrize("path", ["no-such-folder", "me/no-such-repository", "./me/nothing", Path("a/b"), "x" * 300])
def test_a_path_that_leads_nowhere_is_one_clear_error(path):
    with pytest.raises(UnknownNameError, match=str(path)[:20]):
        steer.load(path)


def test_a_file_of_another_method_is_refused_by_a_class(tmp_path):
    fitted().save_pretrained(tmp_path)

    class Other(Toy):
        name = "other"

    with pytest.raises(FileFormatError, match=r"toy.*other"):
        Other.from_pretrained(tmp_path)


def test_a_method_whose_plugin_is_not_installed_names_the_package(tmp_path, monkeypatch):
    from steer import _plugins

    monkeypatch.setitem(_plugins._SOURCES, "toy-plugin", _plugins.Source("toy", "steer-toy", "1.2"))
    fitted().save_pretrained(tmp_path)
    plugin = _plugins.manager().unregister(name="toy-plugin")
    try:
        with pytest.raises(UnknownNameError, match="steer-toy"):
            steer.load(tmp_path)
    finally:
        _plugins.manager().register(plugin, name="toy-plugin")


def test_a_method_that_learns_nothing_says_so_when_fitted():
    with pytest.raises(SteerError, match=r"toy.*no fitting"):
        Toy().fit(torch.nn.Linear(1, 1), None, [])
