"""Every public name has a docstring, and a test that uses it: seen in the tests' syntax, not in their comments."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import typer.main

import steer
from steer import hookspecs
from steer.cli import build_app

ROOT = Path(__file__).parents[2]
# Names that a test cannot use by name, with the reason.
RETURNED = "the class of what a tested function returns; the tests use its fields"
ENGINE = "called by the engine or by transformers, which tests of sessions and memories go through"
UNUSED = {
    "steer.gates.Gate": "a protocol; the gates are used",
    "steer.ops.Op": "a protocol; the ops are used",
    "steer.conditions.Condition": RETURNED,
    "steer.fitting.Scores": RETURNED,
    "steer.memory.reading.Divergence": RETURNED,
    "steer.suites._parts.Comparison": RETURNED,
    "steer.suites._parts.Score": RETURNED,
    "steer.suites._resampling.Estimate": RETURNED,
    "steer.zoo._scenes.Thing": RETURNED,
    "steer.memory.method.MemoryMethod": "a base class; its methods are used",
    "steer.suites._registry.SuiteRegistry": "handed to a hook, whose tests call it",
    "steer.registry.KernelRegistry": "handed to a hook, whose tests call it",
    "steer.memory.layer.KeptLayer.unplaced": ENGINE,
    "steer.memory.seen.Seen.oldest": "read by the scorers, whose results are compared with others'",
    "steer.memory.seen.Seen.query_real": "read by the scorers, whose results are compared with others'",
    "steer.training.loop.Job.after_backward": "given by a method's fit, whose results are compared with others'",
}
PROTOCOLS = (steer.gates.Gate, steer.ops.Op)
"""What their docstrings say of a member holds for every gate and op that has it."""


# Beside the modules in `steer.__all__`: what plugins import, or are handed.
MORE = ("conditions", "hookspecs", "latch", "nesting", "prompt_state", "registry", "replaying", "testing")


def modules() -> Iterator[ModuleType]:
    """Every module whose names are promised."""
    for name in (*steer.__all__, *MORE):
        if inspect.ismodule(found := getattr(steer, name, None) or importlib.import_module(f"steer.{name}")):
            yield found


def names_of(module: ModuleType) -> list[str]:
    """What a module offers: its `__all__`, or what is defined in it without an underscore."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and isinstance(value, type | FunctionType) and value.__module__ == module.__name__
    ]


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Methods, properties and fields that a class of ours brings itself."""
    for name, value in vars(cls).items():
        inner = getattr(value, "__func__", value)
        if not name.startswith("_") and isinstance(inner, FunctionType | property):
            yield name, inner
    if dataclasses.is_dataclass(cls):
        own = inspect.get_annotations(cls)
        yield from ((field.name, None) for field in dataclasses.fields(cls) if field.name in own)


def public() -> dict[str, Any]:
    """Every public name with what has its docstring; None where it is a field, which its class describes."""
    found: dict[str, Any] = {}
    for module in [steer, *modules()]:
        found[module.__name__] = module
        for name in names_of(module):
            value = getattr(module, name)
            if name.startswith("_") or isinstance(value, ModuleType):
                continue
            home = f"{getattr(value, '__module__', module.__name__)}.{name}"
            if isinstance(value, type) and value.__module__.split(".")[0] == "steer":
                found[home] = value
                found |= {f"{home}.{inner}": thing for inner, thing in members(value) if not inner.startswith("_")}
            elif isinstance(value, FunctionType):
                found[home] = value
    for info in steer.methods().values():
        if info.distribution == "steer-vlm":
            found[f"method {info.name}"] = info.cls
    found |= {f"hook {name}": value for name, value in vars(hookspecs).items() if name.startswith("steer_")}
    found |= {f"command {' '.join(name)}": command for name, command in commands(typer.main.get_command(build_app()))}
    return found


def commands(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        yield from commands(command, (*before, name)) if hasattr(command, "commands") else [((*before, name), command)]


PUBLIC = public()


def uses(tree: ast.AST) -> Iterator[str]:
    """What a test names: attributes, names, imports, keywords of calls, and strings, each whole, as commands are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from node.module.split(".")
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.FunctionDef):  # a hook is used by implementing it
            yield node.name


def used() -> frozenset[str]:
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    return frozenset(name for path in files for name in uses(ast.parse(path.read_text())))


USED = used()


def described(name: str, thing: Any) -> bool:
    if any(inspect.getdoc(getattr(one, name.rpartition(".")[2], None)) for one in PROTOCOLS):
        return True
    if hasattr(thing, "callback"):  # a command
        thing = thing.callback
    if isinstance(thing, property):
        thing = thing.fget
    if dataclasses.is_dataclass(thing) and isinstance(thing, type):
        # A dataclass without a docstring is given its signature for one.
        text = thing.__dict__.get("__doc__") or ""
        return bool(text.strip()) and not text.startswith(f"{thing.__name__}(")
    own = thing.__dict__.get("__doc__") if isinstance(thing, type) else inspect.getdoc(thing)
    return bool((own or "").strip())


def test_every_public_name_has_a_docstring():
    missing = [name for name, thing in PUBLIC.items() if thing is not None and not described(name, thing)]
    assert not missing, missing


def test_every_public_field_is_described_by_its_class():
    missing = []
    for name, thing in PUBLIC.items():
        if thing is None:
            owner, _, field = name.rpartition(".")
            text = " ".join(inspect.getdoc(cls) or "" for cls in PUBLIC[owner].__mro__)
            if field not in text.replace("`", " ").replace(":", " ").replace(",", " ").split():
                missing.append(name)
    assert not missing, missing


def test_every_public_name_is_used_by_a_test():
    missing = [
        name
        for name, thing in PUBLIC.items()
        if not isinstance(thing, ModuleType) and not _is_used(name) and name not in UNUSED
    ]
    assert not missing, missing


def _is_used(name: str) -> bool:
    kind, space, rest = name.partition(" ")
    return set(rest.split()) <= USED if space and kind == "command" else name.replace(" ", ".").split(".")[-1] in USED


@pytest.mark.parametrize("name", UNUSED)
def test_an_exception_is_still_needed(name):
    assert name in PUBLIC
    assert not _is_used(name)


def test_comments_and_parts_of_strings_are_no_use():
    seen = set(uses(ast.parse('# attach\n"""of attach and more"""\nmodel.record(x, strict=True)\nrun("inspect")')))
    assert {"record", "strict", "inspect", "x"} <= seen
    assert "attach" not in seen
