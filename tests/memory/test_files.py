"""A saved memory answers bit for bit as the one that was saved, and a file that is not one is refused in a line."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from steer.errors import FileFormatError, FingerprintError, InterventionError
from steer.memory import Memory
from steer.memory.files import JSON_NAME, TENSORS_NAME, read
from tests.engine.families import FAMILIES
from tests.engine.helpers import tokens
from tests.vectors import subjects

from .answers import logits, pruned, random_selection
from .answers import question as words
from .test_cache_layers import KINDS, built
from .test_memory import GREEDY, parts

REFUSED = (FileFormatError, FingerprintError)


def made(name: str, kind: str = "whole") -> tuple[torch.nn.Module, Memory, dict[str, torch.Tensor]]:
    """A family's model, its memory of a prompt with a picture, and a question."""
    family = FAMILIES[name]
    model = family.model()
    context, question = parts(family, name)
    memory = Memory.empty(model).read(model, context)
    if kind != "whole":
        memory = memory.keep({i: choice(memory, i, kind) for i in memory.places})
    if name == "mllama":
        question["cross_attention_mask"] = torch.ones(*question["input_ids"].shape, 1, 1, dtype=torch.long)
    return model, replace(memory, info={"method": "by hand", "certificate": {"mean": 0.25}}).bind(model), question


def choice(memory: Memory, layer: int, kind: str) -> torch.Tensor:
    kept = memory.kept(layer)
    generator = torch.Generator().manual_seed(layer)
    noise = torch.rand(kept.batch, kept.heads, kept.width, generator=generator)
    if kind == "equal heads":
        return noise.argsort(-1).argsort(-1) < 4
    keep = noise < torch.linspace(0.3, 0.8, kept.heads)[:, None]
    keep[..., -1] = True
    return keep


def answers(model: torch.nn.Module, memory: Memory, question: dict[str, torch.Tensor]) -> torch.Tensor:
    """The scores of everything that is written after a question, fp32."""
    return torch.stack(model.generate(**question, past_key_values=memory, **GREEDY).logits)


CASES = [
    *((name, kind) for name in ("llava", "qwen2_5_vl", "qwen3_5", "mllama") for kind in ("whole", "ragged heads")),
    ("llava", "equal heads"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_loaded_memory_answers_bit_for_bit(tmp_path, name, kind):
    model, memory, question = made(name, kind)
    truth = answers(model, memory, question)
    memory.save(tmp_path / "memory")
    other = FAMILIES[name].model()
    loaded = Memory.load(tmp_path / "memory", other)
    assert torch.equal(answers(other, loaded, question), truth)
    assert (loaded.length, loaded.places, loaded.shapes) == (memory.length, memory.places, memory.shapes)
    assert loaded.info == memory.info
    assert loaded.share() == memory.share()
    for one, two in zip(("tokens", "mask", "images"), (memory.tokens, memory.mask, memory.images), strict=True):
        assert torch.equal(getattr(loaded, one), two)
    # asked twice, and saved again: nothing of it was written to
    assert torch.equal(answers(other, loaded, question), truth)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / TENSORS_NAME).read_bytes() == (tmp_path / "memory" / TENSORS_NAME).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_goes_on_as_it_was(tmp_path, kind):
    model = built(kind, "eager" if "sinks" in kind or kind == "indexed" else "sdpa")
    read = Memory.empty(model).read(model, {"input_ids": tokens(1, 12, seed=3)})
    memory = pruned(read, random_selection(read)).bind(model)
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path, model)
    assert loaded.nbytes == memory.nbytes
    for asked in (words(1), words(2)):
        truth, found = (logits(model.generate(**asked, past_key_values=m, **GREEDY)) for m in (memory, loaded))
        assert torch.equal(found, truth)


def test_a_loaded_memory_reads_on(tmp_path):
    model, memory, question = made("qwen2_5_vl", "ragged heads")
    memory.save(tmp_path)
    on = [m.read(model, question).bind(model) for m in (memory, Memory.load(tmp_path, model))]
    assert torch.equal(answers(model, on[0], question), answers(model, on[1], question))


def test_rows_of_different_padding_in_bf16(tmp_path):
    family = FAMILIES["llava"]
    model = family.model().bfloat16()
    context, question = parts(family, "llava")
    context = {n: torch.cat([t] * 2) for n, t in context.items()}
    context["attention_mask"][0, 0] = 0
    context["pixel_values"] = context["pixel_values"].bfloat16()
    question = {n: torch.cat([t] * 2) for n, t in question.items()}
    question["pixel_values"] = question["pixel_values"].bfloat16()
    memory = Memory.empty(model).read(model, context).bind(model)
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path, model)
    assert torch.equal(answers(model, loaded, question), answers(model, memory, question))
    record = json.loads((tmp_path / JSON_NAME).read_text())
    assert record["next_position"] == [memory.length - 1, memory.length]
    assert record["layers"][0]["counts"] == [[memory.length - 1] * 2, [memory.length] * 2]


def test_what_is_loaded_is_a_map_of_the_file(tmp_path):
    model, memory, _ = made("llava")
    memory.save(tmp_path)
    loaded = Memory.load(tmp_path, model)
    keys = [loaded.kept(i).keys for i in loaded.places]
    base = loaded.tokens.untyped_storage()
    maps = Path("/proc/self/maps")
    if maps.exists():
        held = [line for line in maps.read_text().splitlines() if line.endswith(TENSORS_NAME)]
        spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in held]
        assert all(any(a <= t.data_ptr() < b for a, b in spans) for t in (*keys, loaded.tokens))
    assert base.nbytes() == loaded.tokens.nbytes
    # a new save replaces the name; what was mapped stays
    before = keys[0].clone()
    Memory.empty(model).read(model, {"input_ids": torch.tensor([[5, 6]])}).bind(model).save(tmp_path)
    assert torch.equal(keys[0], before)


def test_the_file_is_one_that_safetensors_reads(tmp_path):
    _, memory, _ = made("qwen3_5", "ragged heads")
    memory.save(tmp_path)
    found = load_file(tmp_path / TENSORS_NAME)
    kept = memory.kept(3)
    for part in ("keys", "values", "slots", "index", "valid"):
        assert torch.equal(found[f"layers.3.{part}"].to(getattr(kept, part).dtype), getattr(kept, part))
    assert found["layers.3.slots"].dtype == torch.int32
    assert torch.equal(found["layers.0.recurrent_states.0"], memory.layers[0].recurrent_states[0])
    saved = read(tmp_path)
    assert torch.equal(saved.layers()[3].counts(), kept.counts())
    assert {p.name for p in tmp_path.iterdir()} == {JSON_NAME, TENSORS_NAME}


def test_an_empty_memory(tmp_path):
    model = FAMILIES["qwen3_5"].model()
    Memory.empty(model).bind(model).save(tmp_path)
    assert Memory.load(tmp_path, model).length == 0


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    model, memory, _ = made("llava")
    memory.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr("steer.memory.files.write_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        memory.keep({0: choice(memory, 0, "equal heads")}).bind(model).save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda m: replace(m, info={"certificate": float("nan")}), "JSON"),
        (lambda m: replace(m, info={"certificate": torch.ones(1)}), "JSON"),
        (lambda m: replace(m, layers=(replace(m.layers[0], keys=m.layers[0].keys / 0), m.layers[1])), "layers.0.keys"),
        (lambda m: replace(m, rope_deltas=torch.zeros(1, 1, dtype=torch.complex64)), "rope_deltas .* plain storage"),
        (
            lambda m: replace(m, layers=(SimpleNamespace(window=object()), m.layers[1])),
            "layers.0.window holds a object",
        ),
    ],
)
def test_what_cannot_be_saved_is_said_and_nothing_is_written(tmp_path, change, fact):
    model, memory, _ = made("llava")
    with pytest.raises(InterventionError, match=fact):
        change(memory).bind(model).save(tmp_path / "memory")
    assert not (tmp_path / "memory").exists()


def test_a_memory_that_is_on_no_model(tmp_path):
    _, memory, _ = made("llava")
    memory.unbind()
    with pytest.raises(InterventionError, match="bind"):
        memory.save(tmp_path)


def test_another_architecture(tmp_path):
    made("llava")[1].save(tmp_path)
    with pytest.raises(FingerprintError, match="qwen2_5_vl"):
        Memory.load(tmp_path, FAMILIES["qwen2_5_vl"].model())


def test_another_rope(tmp_path):
    _, memory, _ = made("llava")
    memory.save(tmp_path)
    other = FAMILIES["llava"].model()
    other.config.get_text_config().rope_parameters = {"rope_type": "default", "rope_theta": 5e5}
    with pytest.raises(FingerprintError, match="500000"):
        Memory.load(tmp_path, other)


def test_other_weights(tmp_path):
    made("llava")[1].save(tmp_path)
    other = FAMILIES["llava"].model()
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if n.endswith("k_proj.weight")).mul_(1.01)
    with pytest.raises(FingerprintError, match="weights"):
        Memory.load(tmp_path, other)


def test_another_dtype_is_cast_and_said(tmp_path):
    _, memory, question = made("qwen3_5", "ragged heads")
    memory.save(tmp_path)
    other = FAMILIES["qwen3_5"].model().bfloat16()
    with pytest.warns(UserWarning, match="float32 and is cast to the model's bfloat16"):
        loaded = Memory.load(tmp_path, other)
    assert loaded.kept(3).keys.dtype == torch.bfloat16
    assert torch.equal(loaded.kept(3).keys, memory.kept(3).keys.bfloat16())
    assert loaded.layers[0].conv_states[0].dtype == torch.bfloat16
    question["pixel_values"] = question["pixel_values"].bfloat16()
    assert answers(other, loaded, question).isfinite().all()


def test_another_tokenizer(tmp_path):
    model, processor = (one := subjects.subject("llama")).model, one.processor
    memory = Memory.empty(model).read(model, {"input_ids": torch.tensor([[5, 6, 7]])}).bind(model)
    memory.save(tmp_path, processor)
    assert Memory.load(tmp_path, model, processor=processor).length == 3
    other = subjects.subject("tiny-vlm").processor
    with pytest.raises(FingerprintError, match="tokenizer"):
        Memory.load(tmp_path, model, processor=other)


def test_a_layer_of_another_kind(tmp_path):
    model, memory, _ = made("qwen3_5")
    memory.save(tmp_path)
    record = json.loads((tmp_path / JSON_NAME).read_text())
    record["layers"][0]["class"] = "DynamicLayer"
    (tmp_path / JSON_NAME).write_bytes(sealed(record))
    with pytest.raises(FingerprintError, match="DynamicLayer"):
        Memory.load(tmp_path, model)


# --- files that mean harm


def sealed(record: dict) -> bytes:
    """The JSON with its digest made right again."""
    body = {key: value for key, value in record.items() if key != "sha256"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({**body, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}).encode()


@pytest.fixture(scope="module")
def subject():
    return made("qwen3_5", "ragged heads")


@pytest.fixture(scope="module")
def good(subject, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    subject[1].save(folder)
    return folder


@pytest.fixture
def broken(good, tmp_path):
    def make(name: str, data: bytes) -> Path:
        target = tmp_path / "broken"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(good, target)
        (target / name).write_bytes(data)
        return target

    return make


def refused(folder: Path, model: torch.nn.Module) -> str:
    with pytest.raises(REFUSED) as caught:
        Memory.load(folder, model)
    return str(caught.value)


@given(name=st.sampled_from([JSON_NAME, TENSORS_NAME]), share=st.floats(0, 1, exclude_max=True))
def test_truncated(subject, good, broken, name, share):
    data = (good / name).read_bytes()
    assert name in refused(broken(name, data[: int(share * len(data))]), subject[0])


@settings(max_examples=200)
@given(name=st.sampled_from([JSON_NAME, TENSORS_NAME]), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_bit_flipped(subject, good, broken, name, where, bit):
    whole = (good / name).read_bytes()
    data = bytearray(whole)
    data[int(where * len(data))] ^= 1 << bit
    target = broken(name, bytes(data))
    try:
        unchanged = name == JSON_NAME and json.loads(bytes(data)) == json.loads(whole)
    except ValueError:
        unchanged = False
    if not unchanged:  # else only blanks between values changed
        assert name in refused(target, subject[0])


def header(text: bytes, data: bytes = b"\0" * 64) -> bytes:
    return struct.pack("<Q", len(text)) + text + data


HOSTILE = {
    "empty": b"",
    "a pickle": pickle.dumps({"tokens": 1}),
    "a header longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "offsets past the end": header(b'{"tokens":{"dtype":"I64","shape":[1,99],"data_offsets":[0,792]}}'),
    "a shape that overflows": header(
        b'{"tokens":{"dtype":"I64","shape":[4294967296,4294967296],"data_offsets":[0,8]}}'
    ),
    "unknown dtype": header(b'{"tokens":{"dtype":"F9","shape":[2,8],"data_offsets":[0,64]}}'),
    "other names": save({"other": torch.zeros(2)}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("digest", ["as it was", "made right"])
def test_hostile_tensors(subject, good, broken, name, digest):
    record = json.loads((good / JSON_NAME).read_text())
    if digest == "made right":
        record["tensors"] |= {"sha256": hashlib.sha256(HOSTILE[name]).hexdigest(), "bytes": len(HOSTILE[name])}
    target = broken(JSON_NAME, sealed(record))
    (target / TENSORS_NAME).write_bytes(HOSTILE[name])
    assert TENSORS_NAME in refused(target, subject[0])


def swapped(good: Path, target: Path, tensors: dict[str, torch.Tensor], record: dict) -> None:
    """A folder in which everything is right but what is in the tensors."""
    payload = save(tensors)
    entries = {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()}
    record["tensors"] = {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": len(payload), "entries": entries}
    (target / TENSORS_NAME).write_bytes(payload)
    (target / JSON_NAME).write_bytes(sealed(record))


TAMPERED = {
    "NaN": ("layers.3.keys", lambda t: t.index_fill(0, torch.tensor([0]), float("nan"))),
    "infinity in a state": ("layers.0.recurrent_states.0", lambda t: t / 0),
    "no keys": ("layers.3.keys", lambda t: None),
    "more rows than the memory": ("layers.3.index", lambda t: torch.cat([t, t])),
    "an index past the keys": ("layers.3.index", lambda t: t + 1),
    "an index before them": ("layers.3.index", lambda t: t - 1),
    "an index of floats": ("layers.3.index", lambda t: t.float()),
    "slots past the sequence": ("layers.3.slots", lambda t: t + 1000),
    "slots that descend": ("layers.3.slots", lambda t: t.flip(-1)),
    "slots of other heads": ("layers.3.slots", lambda t: t[:, :1].repeat(1, 3, 1)),
    "heads without a key": ("layers.3.valid", lambda t: t & False),
    "valid of another width": ("layers.3.valid", lambda t: t[..., 1:]),
    "keys of whole numbers": ("layers.3.keys", lambda t: t.long()),
    "fewer values than keys": ("layers.3.values", lambda t: t[1:]),
    "tokens of floats": ("tokens", lambda t: t.float()),
    "more tokens than were read": ("tokens", lambda t: torch.cat([t, t], 1)),
    "a mask of another length": ("mask", lambda t: t[:, 1:]),
    "rope deltas of another batch": ("rope_deltas", lambda t: torch.cat([t, t])),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_tensors(subject, good, broken, name):
    target = broken(JSON_NAME, b"")
    tensors = load_file(good / TENSORS_NAME)
    which, change = TAMPERED[name]
    changed = change(tensors.pop(which))
    if changed is not None:
        tensors[which] = changed.contiguous()
    swapped(good, target, tensors, json.loads((good / JSON_NAME).read_text()))
    assert str(target) in refused(target, subject[0])


EDITED = {
    "another format": lambda r: r.update(format="steer-method"),
    "a later version": lambda r: r.update(format_version=2),
    "a field is missing": lambda r: r.pop("places"),
    "a field of another kind": lambda r: r.update(length=True),
    "a dtype that is none": lambda r: r.update(dtype="load"),
    "fewer layers": lambda r: r["layers"].pop(0),
    "more layers": lambda r: r["layers"].append(r["layers"][0]),
    "a layer without a state": lambda r: r["layers"][0].update(state=5),
    "a layer that is none": lambda r: r["layers"].__setitem__(0, 5),
    "a place that is none": lambda r: r["places"].update({"7": "x"}),
    "a place twice": lambda r: r["places"].update({"2": 3}),
    "a layer of the model that is none": lambda r: r.update(places={"9": 3}),
    "a method hidden by data": lambda r: r["layers"][0]["state"].update(crop={"value": 1}),
    "a private name": lambda r: r["layers"][0]["state"].update(__class__={"value": 1}),
    "a state is missing": lambda r: r["layers"][0]["state"].pop("conv_states"),
    "a tensor that is not there": lambda r: r["layers"][0]["state"].update(conv_states={"tensor": "x"}),
    "a state that is none": lambda r: r["layers"][0]["state"].update(conv_states={"eval": "x"}),
    "an index that is none": lambda r: r["layers"][0]["state"].update(conv_states={"by_index": {"a": {"value": 1}}}),
    "another number of states": lambda r: r["layers"][0]["state"].update(number_of_states={"value": 3}),
    "shapes of words": lambda r: r["shapes"].update(pixel_values="abc"),
    "another fingerprint": lambda r: r["fingerprint"]["towers"]["text"].update(width=64),
    "a fingerprint that is none": lambda r: r["fingerprint"].pop("towers"),
}


@pytest.mark.parametrize("name", EDITED)
def test_edited_json(subject, good, broken, name):
    record = json.loads((good / JSON_NAME).read_text())
    EDITED[name](record)
    assert refused(broken(JSON_NAME, sealed(record)), subject[0])


HOSTILE_JSON = {
    "empty": b"",
    "a list": b"[]",
    "not UTF-8": b'{"format": "\xff"}',
    "nested to the stack's end": b"[" * 200_000 + b"]" * 200_000,
    "NaN": b'{"format": NaN}',
    "a key twice": b'{"format": "steer-memory", "format": "steer-memory"}',
    "17 MB": b'{"format": "' + b"x" * (17 * 2**20) + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json(subject, broken, name):
    assert JSON_NAME in refused(broken(JSON_NAME, HOSTILE_JSON[name]), subject[0])


@pytest.mark.parametrize("name", [JSON_NAME, TENSORS_NAME])
@pytest.mark.parametrize("instead", ["nothing", "a folder"])
def test_a_file_that_is_no_file(subject, broken, name, instead):
    target = broken(name, b"")
    (target / name).unlink()
    if instead == "a folder":
        (target / name).mkdir()
    assert name in refused(target, subject[0])


def test_two_halves_of_two_saves(subject, good, tmp_path):
    model, memory, _ = subject
    memory.keep({3: choice(memory, 3, "ragged heads")}).bind(model).save(tmp_path)
    shutil.copy(good / TENSORS_NAME, tmp_path / TENSORS_NAME)
    assert TENSORS_NAME in refused(tmp_path, model)
