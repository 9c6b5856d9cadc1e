"""Every way in which steer reads a file: valid files, how they are made wrong, and what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import steer
from steer._kept import Kept
from steer.files import JSON_NAME, TENSORS_NAME
from steer.memory import Memory
from steer.memory import files as memory_files
from steer.profiling import HeadMap
from steer.profiling import checkpoint as profile_checkpoint
from steer.suites import Answer, chair, pope
from steer.training import _checkpoint as fit_checkpoint
from tests.engine.helpers import tiny_llama, tokens
from tests.files.toy import fitted, toy_map
from tests.suites.made import chair_files, pope_files
from tests.vectors.subjects import subject

from . import mutations


@dataclass(frozen=True)
class Loader:
    """One way.

    Attributes:
        make: writes valid files into a folder, once.
        read: what steer makes of the folder; looked at as a user would, so that nothing is left for later.
        change: a strategy of (file's name, its new bytes) lists, from the valid folder.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    change: Callable[[Path], st.SearchStrategy[dict[str, bytes]]]


@st.composite
def raw(draw: Any, folder: Path, *names: str) -> dict[str, bytes]:
    """One of the files with its bytes changed."""
    name = draw(st.sampled_from(names))
    return {name: draw(mutations.changed_bytes((folder / name).read_bytes()))}


@st.composite
def paired(draw: Any, folder: Path, record_name: str, tensors_name: str) -> dict[str, bytes]:
    """A record and its tensors: bytes changed, or values with every digest made right."""
    kind = draw(st.sampled_from(["raw", "record", "record", "record", "tensors"]))
    if kind == "raw":
        return draw(raw(folder, record_name, tensors_name))
    record = json.loads((folder / record_name).read_text())
    if kind == "record":
        return {record_name: mutations.sealed(draw(mutations.changed_json(record)))}
    data = draw(mutations.changed_tensors((folder / tensors_name).read_bytes()))
    record["tensors"] = mutations.declared(data, record["tensors"])
    return {record_name: mutations.sealed(record), tensors_name: data}


@st.composite
def tensors_file(draw: Any, folder: Path, name: str) -> dict[str, bytes]:
    """One safetensors file with facts in its metadata."""
    return {name: draw(mutations.changed_tensors((folder / name).read_bytes()))}


@st.composite
def lines_of_json(draw: Any, folder: Path, *names: str) -> dict[str, bytes]:
    """A line's values changed, or the bytes of the file."""
    if draw(st.integers(0, 3)) == 0:
        return draw(raw(folder, *names))
    name = draw(st.sampled_from(names))
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = mutations.text(draw(mutations.changed_json(json.loads(lines[at])))) + b"\n"
    return {name: b"".join(lines)}


@st.composite
def documents(draw: Any, folder: Path, *names: str) -> dict[str, bytes]:
    """A JSON file's values changed, or the bytes of any file."""
    name = draw(st.sampled_from(names))
    if not name.endswith(".json") or draw(st.integers(0, 3)) == 0:
        return draw(raw(folder, name))
    return {name: mutations.text(draw(mutations.changed_json(json.loads((folder / name).read_text()))))}


def small(data: Any) -> Any:
    """The same with no number above 64: a config may ask for a model of any size, and transformers will build it."""
    if isinstance(data, dict):
        return {key: small(value) for key, value in data.items()}
    if isinstance(data, list):
        return [small(value) for value in data]
    return max(-64, min(64, data)) if isinstance(data, int | float) and not isinstance(data, bool) else data


@st.composite
def configs(draw: Any, folder: Path) -> dict[str, bytes]:
    """A model's config.json with small numbers."""
    data = json.loads((folder / "config.json").read_text())
    return {"config.json": mutations.text(small(draw(mutations.changed_json(data))))}


@cache
def model() -> Any:
    """What methods, memories and profiles are of."""
    return tiny_llama()


def _method(folder: Path) -> None:
    fitted().save_pretrained(folder)


def _fitted(name: str) -> Callable[[Path], None]:
    """A method that was really fitted; "gate" is one around another."""

    def make(folder: Path) -> None:
        one = subject("llama")
        quick = {"max_steps": 1, "progress": False, "batch_size": 4}
        if name == "gate":
            inner = steer.create("live").fit(one.model, one.processor, one.examples, **quick)
            made = steer.create("gate").over(inner).fit(one.model, one.processor, one.examples, **quick)
        else:
            made = steer.create(name).fit(one.model, one.processor, one.examples)
        made.save_pretrained(folder)

    return make


def _use(folder: Path) -> None:
    """On the model it was made for: a file that loads makes interventions that run."""
    one = subject("llama")
    method = steer.load(folder, one.model)
    shown = method.prompts(one.examples[:1], one.model, one.processor)
    assert len(shown) == 1
    with steer.attach(one.model, method, strict=False):
        one.model(tokens(1, 4))


def _memory(folder: Path) -> None:
    made = Memory.empty(model()).read(model(), {"input_ids": tokens(1, 9)})
    keep = {}
    for layer in made.places:
        kept = made.kept(layer)
        keep[layer] = torch.arange(kept.width).expand(kept.batch, kept.heads, -1) % 3 != layer % 3
    made.keep(keep).bind(model()).save(folder)


def _read_memory(folder: Path) -> None:
    memory = Memory.load(folder, model())
    found = model().generate(tokens(1, 3, seed=1), past_key_values=memory, max_new_tokens=1, do_sample=False)
    assert found.shape == (1, 4)


def _head_map(folder: Path) -> None:
    table = torch.arange(24.0).reshape(3, 8)
    facts = {"fingerprint": steer.inspect(model()).fingerprint(), "options": {"samples": 4, "scale": "probability"}}
    HeadMap({"ie": table}, {"ie": table / 10}, n=4, model_class="LlamaForCausalLM", **facts).save(folder / "map.st")


def _read_head_map(folder: Path) -> None:
    found = HeadMap.load(folder / "map.st")
    found.check_fits(model())
    found.top(3, found.measures[0])
    found.html(folder / "page.html")


IDENTITY = {"method": "x", "seed": 0, "options": {"lr": 0.5, "epochs": 2}, "layers": [0, 1]}


def _learned() -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    learned = {"x": torch.arange(3.0).requires_grad_(), "scale": torch.ones((), requires_grad=True)}
    optimiser = torch.optim.AdamW(learned.values(), lr=0.1)
    (learned["x"] * learned["scale"]).sum().backward()
    optimiser.step()
    return learned, optimiser


def _fit(folder: Path) -> None:
    learned, optimiser = _learned()
    progress = fit_checkpoint.Progress(3, 0.25, 1, 2.5, [{"step": 2, "loss": 0.5, "dev": 0.25}], {"loss": 0.5})
    fit_checkpoint.write(
        folder, IDENTITY, progress, learned, {name: value.detach() + 1 for name, value in learned.items()}, optimiser
    )


def _read_fit(folder: Path) -> None:
    """As the loop does it: what was read is reckoned with, and the optimiser goes on."""
    learned, optimiser = _learned()
    found = fit_checkpoint.read(folder, IDENTITY, learned, optimiser)
    assert found is not None
    progress, best = found
    assert progress.step + progress.worse >= 0
    assert progress.seconds >= 0
    assert {name: value.shape for name, value in best.items()} == {name: value.shape for name, value in learned.items()}
    optimiser.step()


def _profile(folder: Path) -> None:
    state = profile_checkpoint.State(folder, IDENTITY)
    state.add("clean", 2, {"clean": torch.ones(2), "sum.heads": torch.ones(3, 8)})
    state.keep(now=True)


def _read_profile(folder: Path) -> None:
    state = profile_checkpoint.resume(folder, IDENTITY)
    state.add("clean", state.done("clean") + 1, {"clean": torch.ones(1), "sum.heads": torch.ones(3, 8)})


def _examples(folder: Path) -> None:
    steer.data.write(folder, steer.zoo.examples("colour", "demo", n=3))


def _read_examples(folder: Path) -> None:
    for example in steer.data.read(folder):
        _look(example)


def _look(example: steer.Example) -> None:
    assert isinstance(example.question, str)
    assert isinstance(example.answer, str)
    for image in example.images:
        assert image.mode == "RGB"


def _pictures(folder: Path, count: int = 3) -> list[str]:
    names = []
    for i, (image, _) in enumerate(steer.zoo.pictures("test")[:count]):
        names.append(f"{i}.{('png', 'jpg', 'gif')[i % 3]}")
        image.save(folder / names[-1])
    return names


def _table(folder: Path) -> None:
    rows = [f"{name},{('cat', 'dog')[i % 2]}" for i, name in enumerate(_pictures(folder))]
    (folder / "rows.csv").write_text("\n".join(["image,label", *rows, ""]))
    lines = [json.dumps({"image": row.split(",")[0], "label": row.split(",")[1]}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))


def _read_table(folder: Path) -> None:
    for name in ("rows.csv", "rows.jsonl"):
        for example in steer.data.read_labelled(folder / name):
            _look(example)


def _classes(folder: Path) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        _pictures(folder / name)


def _read_classes(folder: Path) -> None:
    for example in steer.data.read_labelled(folder):
        _look(example)


def _pope(folder: Path) -> None:
    pope_files(folder, 2, ("pope",))


def _asked(folder: Path) -> list[Any]:
    return pope.load([folder / "pope.json"], folder / "images")


def _kept(folder: Path) -> Kept[Answer]:
    asked = {one.key: one.example for one in _asked(folder)}
    return Kept(folder / "answers", Answer, asked, "model", "how", "plain")


def _answers(folder: Path) -> None:
    _pope(folder)
    _kept(folder).keep([Answer(one.key, "yes", 0.75, 0.9, 2, 1.5) for one in _asked(folder)], 0)


def _read_answers(folder: Path) -> None:
    known = _kept(folder).read()
    asked = [one for one in _asked(folder) if one.key in known]
    if asked:
        pope.score(asked, [known[one.key] for one in asked])


def _read_pope(folder: Path) -> None:
    for question in _asked(folder):
        _look(question.example)


def _chair(folder: Path) -> None:
    chair_files(folder)
    (folder / "pictures.jsonl").write_text('{"image_id": 10}\n{"image": "2.png"}\n')


def _read_chair(folder: Path) -> None:
    names = ("instances_val2014.json", "captions_val2014.json", "synonyms.txt", "pictures.jsonl")
    found = chair.load([folder / name for name in names], folder / "images")
    chair.measure(found, [Answer(one.key, "two dogs and a hot dog on a table", None, None, 1, 1.0) for one in found])


def _config(folder: Path) -> None:
    # Few numbers in it, so that what is changed matters.
    kept = ("architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size",
            "num_attention_heads", "num_key_value_heads", "head_dim", "rope_parameters", "hidden_act")  # fmt: skip
    whole = {**model().config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({key: whole[key] for key in kept}))


def _read_config(folder: Path) -> None:
    steer.inspect(folder / "config.json")


LOADERS = {
    "a method": Loader(
        _method, lambda folder: steer.load(folder, toy_map()), lambda f: paired(f, JSON_NAME, TENSORS_NAME)
    ),
    **{
        f"a method: {name}": Loader(_fitted(name), _use, lambda f: paired(f, JSON_NAME, TENSORS_NAME))
        for name in ("icv", "icl", "iti", "gate")
    },
    "a memory": Loader(
        _memory, _read_memory, lambda f: paired(f, memory_files.JSON_NAME, memory_files.TENSORS_NAME)
    ),
    "a profile of heads": Loader(_head_map, _read_head_map, lambda f: tensors_file(f, "map.st")),
    "a fit's checkpoint": Loader(_fit, _read_fit, lambda f: tensors_file(f, fit_checkpoint.NAME)),
    "a profile's checkpoint": Loader(_profile, _read_profile, lambda f: tensors_file(f, profile_checkpoint.NAME)),
    "examples": Loader(_examples, _read_examples, lambda f: lines_of_json(f, "data.jsonl")),
    "tables of labelled pictures": Loader(
        _table, _read_table, lambda f: lines_of_json(f, "rows.jsonl") | raw(f, "rows.csv")
    ),
    "pictures in class folders": Loader(
        _classes, _read_classes, lambda f: raw(f, "cat/0.png", "cat/1.jpg", "dog/2.gif")
    ),
    "POPE": Loader(_pope, _read_pope, lambda f: lines_of_json(f, "pope.json")),
    "answers that were kept": Loader(_answers, _read_answers, lambda f: lines_of_json(f, "answers/answers-0.jsonl")),
    "CHAIR": Loader(
        _chair,
        _read_chair,
        lambda f: documents(f, "instances_val2014.json", "captions_val2014.json", "synonyms.txt")
        | lines_of_json(f, "pictures.jsonl"),
    ),
    "a model's config.json": Loader(_config, _read_config, configs),
}  # fmt: skip
