"""Truncated, flipped, mis-shaped and hostile files: one clear error each, never a crash, never half a method."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import steer
from steer.errors import FileFormatError, FingerprintError, UnknownNameError
from steer.files import JSON_NAME, TENSORS_NAME

from .test_saving import same
from .toy import ToyPlugin, fitted, toy_map

ONE_OF = (FileFormatError, FingerprintError, UnknownNameError)


@pytest.fixture(autouse=True)
def _toy_is_installed(plugged):
    plugged(ToyPlugin())


@pytest.fixture
def folder(tmp_path) -> Path:
    fitted().save_pretrained(tmp_path / "good")
    return tmp_path / "good"


@pytest.fixture
def broken(folder, tmp_path):
    """A copy of the good folder in which one file's bytes were replaced."""

    def make(name: str, data: bytes) -> Path:
        target = tmp_path / "broken"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        (target / name).write_bytes(data)
        return target

    return make


def sealed(record: dict) -> bytes:
    """The JSON with its digest made right again, as someone would who means harm."""
    body = {key: value for key, value in record.items() if key != "sha256"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({**body, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}).encode()


def refused(folder: Path) -> str:
    """The message of the one error; a load that succeeds fails the test."""
    with pytest.raises(ONE_OF) as caught:
        steer.load(folder, toy_map())
    assert str(caught.value).strip()
    return str(caught.value)


@given(name=st.sampled_from([JSON_NAME, TENSORS_NAME]), share=st.floats(0, 1, exclude_max=True))
def test_truncated(folder, broken, name, share):
    data = (folder / name).read_bytes()
    assert name in refused(broken(name, data[: int(share * len(data))]))


@settings(max_examples=300)
@given(name=st.sampled_from([JSON_NAME, TENSORS_NAME]), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_bit_flipped(folder, broken, name, where, bit):
    data = bytearray((folder / name).read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    target = broken(name, bytes(data))
    if name == JSON_NAME and _same_json(bytes(data), (folder / name).read_bytes()):
        # Only blanks between values changed.
        assert same(steer.load(target), fitted())
    else:
        assert name in refused(target)


def _same_json(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


@given(name=st.sampled_from([JSON_NAME, TENSORS_NAME]), data=st.binary(max_size=200))
def test_random_bytes(broken, name, data):
    refused(broken(name, data))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = [
    ("format",),
    ("format_version",),
    ("method",),
    ("plugin",),
    ("config",),
    ("config", "strength"),
    ("config", "layers"),
    ("config", "note"),
    ("config", "options"),
    ("config", "unheard_of"),
    ("tensors",),
    ("tensors", "sha256"),
    ("tensors", "bytes"),
    ("tensors", "entries"),
    ("tensors", "entries", "vectors"),
    ("tensors", "entries", "vectors", "shape"),
    ("provenance", "fingerprint"),
    ("provenance", "fingerprint", "towers"),
    ("provenance", "fingerprint", "towers", "text", "layers"),
]

# Where another value can be right.
FREE = {*KEYS[3:9], ("provenance", "fingerprint")}


@settings(max_examples=300)
@given(keys=st.sampled_from(KEYS), value=anything)
def test_any_value_anywhere_with_the_digest_made_right(folder, broken, keys, value):
    record = json.loads((folder / JSON_NAME).read_text())
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    target = broken(JSON_NAME, sealed(record))
    try:
        loaded = steer.load(target, toy_map())
    except ONE_OF:
        pass
    else:
        # It may load only as a method that could have been saved so: right types, all tensors.
        assert keys in FREE or value == _at(folder, keys)
        assert isinstance(loaded.strength, float)
        assert loaded.layers == "all" or all(type(layer) is int for layer in loaded.layers)
        assert loaded.note is None or isinstance(loaded.note, str)
        assert torch.equal(loaded.tensors["vectors"], fitted().tensors["vectors"])


def _at(folder: Path, keys: tuple[str, ...]) -> object:
    value = json.loads((folder / JSON_NAME).read_text())
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


@given(
    shape=st.lists(st.integers(0, 5), max_size=3), dtype=st.sampled_from([torch.float32, torch.float16, torch.int32])
)
def test_tensors_of_another_shape_with_every_digest_made_right(folder, broken, shape, dtype):
    tensors = {"vectors": torch.zeros(shape, dtype=dtype), "count": torch.tensor(7)}
    payload = save(tensors)
    record = json.loads((folder / JSON_NAME).read_text())
    record["tensors"] |= {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload)}
    target = broken(JSON_NAME, sealed(record))
    (target / TENSORS_NAME).write_bytes(payload)
    assert "vectors" in refused(target)


def test_a_tensor_that_is_listed_as_null_is_named(folder, broken):
    record = json.loads((folder / JSON_NAME).read_text())
    record["tensors"]["entries"]["ghost"] = None
    assert "tensor 'ghost' is listed as None and stored as 'nothing'" in refused(broken(JSON_NAME, sealed(record)))


def header(body: bytes, length: int | None = None) -> bytes:
    """A safetensors file with a given header, and a given lie about its length."""
    return struct.pack("<Q", len(body) if length is None else length) + body + b"\0" * 64


HOSTILE_TENSORS = {
    "empty": b"",
    "a pickle": pickle.dumps({"vectors": [1.0]}),
    "header longer than memory": header(b"{}", 2**63),
    "header longer than the file": header(b"{}", 10_000),
    "not JSON": header(b"{{{{"),
    "offsets past the end": header(b'{"vectors":{"dtype":"F32","shape":[2,8],"data_offsets":[0,4000000000]}}'),
    "offsets backwards": header(b'{"vectors":{"dtype":"F32","shape":[2,8],"data_offsets":[64,0]}}'),
    "shape that overflows": header(
        b'{"vectors":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,64]}}'
    ),
    "negative shape": header(b'{"vectors":{"dtype":"F32","shape":[-2,8],"data_offsets":[0,64]}}'),
    "unknown dtype": header(b'{"vectors":{"dtype":"F9","shape":[2,8],"data_offsets":[0,64]}}'),
    "other names": save({"other": torch.zeros(2, 8)}),
    "not finite": save({"vectors": torch.full((2, 8), float("nan")), "count": torch.tensor(7)}),
}


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
@pytest.mark.parametrize("digest", ["as it was", "made right"])
def test_hostile_tensors(folder, broken, name, digest):
    payload = HOSTILE_TENSORS[name]
    record = json.loads((folder / JSON_NAME).read_text())
    if digest == "made right":
        record["tensors"] |= {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload)}
    target = broken(JSON_NAME, sealed(record))
    (target / TENSORS_NAME).write_bytes(payload)
    refused(target)


HOSTILE_JSON = {
    "empty": b"",
    "a pickle": pickle.dumps({"format": "steer-method"}),
    "a list": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"format": "\xff"}',
    "nested to the stack's end": b"[" * 200_000 + b"]" * 200_000,
    "a number of a million digits": b'{"format": ' + b"9" * 1_000_000 + b"}",
    "NaN": b'{"format": NaN}',
    "a key twice": b'{"format": "steer-method", "format": "steer-method"}',
    "17 MB": b'{"format": "' + b"x" * (17 * 2**20) + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json(broken, name):
    assert JSON_NAME in refused(broken(JSON_NAME, HOSTILE_JSON[name]))


@pytest.mark.parametrize("method", ["os.system", "../../etc", "__main__:x", "toy\n", "Toy", "x" * 100_000, ""])
def test_a_method_name_is_only_ever_looked_up(folder, broken, method):
    record = json.loads((folder / JSON_NAME).read_text())
    record["method"] = method
    assert "there is no method" in refused(broken(JSON_NAME, sealed(record)))


@pytest.mark.parametrize("name", [JSON_NAME, TENSORS_NAME])
@pytest.mark.parametrize("instead", ["nothing", "a folder", "a link to nowhere"])
def test_a_file_that_is_no_file(broken, name, instead):
    target = broken(name, b"")
    (target / name).unlink()
    if instead == "a folder":
        (target / name).mkdir()
    elif instead == "a link to nowhere":
        (target / name).symlink_to(target / "nowhere")
    assert name in refused(target)


def test_two_halves_of_two_saves(folder, tmp_path):
    other = fitted()
    other.tensors["vectors"] = other.tensors["vectors"] + 1
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / TENSORS_NAME, folder / TENSORS_NAME)
    assert TENSORS_NAME in refused(folder)


def test_a_field_that_is_edited_by_hand_is_noticed_and_the_message_says_how_to_change_it(folder):
    path = folder / JSON_NAME
    path.write_text(path.read_text().replace('"strength": 0.5', '"strength": 0.7'))
    assert "save" in refused(folder)
