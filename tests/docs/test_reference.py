"""Nothing public is without an entry in the documentation: names with their arguments, hooks, commands, methods."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Iterator

import pytest
import typer.main

import steer
from steer import hookspecs
from steer.cli import build_app

from .blocks import ROOT

REFERENCE = (ROOT / "docs/reference.md").read_text()
PAGES = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
METHODS = sorted(name for name, info in steer.methods().items() if info.distribution == "steer-vlm")


def sections(text: str, level: str) -> dict[str, str]:
    """Heading to body, for headings of one level."""
    parts = re.split(rf"^{level} (.+)$", text, flags=re.MULTILINE)
    return dict(zip((title.strip("` ") for title in parts[1::2]), parts[2::2], strict=True))


def written_arguments(text: str, name: str) -> list[str] | None:
    """The argument names in the text's `name(...)`; None when there is no such entry."""
    found = re.search(rf"`{re.escape(name)}\((.*?)\)`", text)
    if found is None:
        return None
    arguments, depth, current = [], 0, ""
    for character in found.group(1) + ",":
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            arguments.append(current)
            current = ""
        else:
            current += character
    names = (re.split("[=:]", argument)[0].strip().lstrip("*") for argument in arguments)
    return [name for name in names if name]


def real_arguments(thing: object) -> list[str]:
    return [name for name in inspect.signature(thing).parameters if name != "self"]


def public_things() -> Iterator[tuple[str, object]]:
    """Every function and class that a user can reach by a documented road, under the name a user writes."""
    for name in steer.__all__:
        thing = getattr(steer, name)
        if isinstance(thing, types.ModuleType):
            names = getattr(thing, "__all__", None) or [
                key
                for key, value in vars(thing).items()
                if not key.startswith("_") and getattr(value, "__module__", None) == thing.__name__
            ]
            values = ((f"{name}.{key}", getattr(thing, key)) for key in names)
            yield from ((key, value) for key, value in values if isinstance(value, type | types.FunctionType))
        else:
            yield f"steer.{name}", thing


THINGS = dict(public_things())


@pytest.mark.parametrize("name", steer.__all__)
def test_every_public_name_has_an_entry(name):
    assert re.search(rf"`steer\.{name}[`(.]", REFERENCE), f"docs/reference.md has no entry for steer.{name}"


@pytest.mark.parametrize(
    "name", [name for name, thing in THINGS.items() if callable(thing) and name != "steer.hookimpl"]
)
def test_every_function_and_class_is_documented_with_its_arguments(name):
    thing = THINGS[name]
    if isinstance(thing, type) and not dataclasses.is_dataclass(thing):
        assert f"`{name}`" in REFERENCE or f"`{name}(" in REFERENCE, f"docs/reference.md has no entry for {name}"
        return
    if name == "steer.Method":
        return
    written = written_arguments(REFERENCE, name)
    assert written is not None, f"docs/reference.md has no entry `{name}({', '.join(real_arguments(thing))})`"
    assert written == real_arguments(thing), f"{name} is documented with other arguments"


@pytest.mark.parametrize("cls", [steer.Method, steer.Session, steer.ModelMap], ids=lambda cls: cls.__name__)
def test_every_attribute_of_the_classes_one_holds_is_documented(cls):
    body = sections(REFERENCE, "###")[f"steer.{cls.__name__}"]
    names = {name for name in vars(cls) if not name.startswith("_")}
    names |= {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for name in names:
        value = getattr(cls, name, None)
        if inspect.isfunction(value) or inspect.ismethod(value):
            assert written_arguments(body, f".{name}") == real_arguments(value), f"{cls.__name__}.{name}"
        else:
            assert f"`.{name}`" in body, f"{cls.__name__}.{name} is not in docs/reference.md"


@pytest.mark.parametrize("hook", [name for name in vars(hookspecs) if name.startswith("steer_")])
def test_every_hook_is_documented_with_its_exact_arguments(hook):
    page = (ROOT / "docs/plugins.md").read_text()
    assert written_arguments(page, hook) == real_arguments(getattr(hookspecs, hook))


def test_no_hook_is_documented_that_does_not_exist():
    written = set(re.findall(r"`(steer_\w+)\(", PAGES))
    assert written <= set(vars(hookspecs))


def leaves(group: object, before: str = "") -> Iterator[tuple[str, object]]:
    """Every command under the name a user writes, those of a group after the group's."""
    for name, command in group.commands.items():
        yield from leaves(command, f"{before}{name} ") if hasattr(command, "commands") else [(before + name, command)]


COMMANDS = dict(leaves(typer.main.get_command(build_app())))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented_with_every_option(name):
    body = sections(REFERENCE, "###").get(f"steer {name}")
    assert body is not None, f"docs/reference.md has no section for `steer {name}`"
    for parameter in COMMANDS[name].params:
        if parameter.name == "help":
            continue
        shown = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
        for option in shown:
            assert option in body, f"`steer {name} {option}` is not documented"


def test_no_option_is_documented_that_does_not_exist():
    for name, command in COMMANDS.items():
        real = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        written = set(re.findall(r"`(--[\w-]+)", sections(REFERENCE, "###")[f"steer {name}"]))
        assert written <= real | {"--debug"}, name


@pytest.mark.parametrize("name", METHODS)
def test_every_built_in_method_has_a_section_with_every_field(name):
    body = sections(PAGES, "###").get(name)
    assert body is not None, f"no page of docs/ has a section ### `{name}`"
    for field in steer.methods()[name].to_dict()["config"]:
        assert f"`{field}`" in body, f"field {field!r} of method {name!r} is not documented"
    assert steer.methods()[name].paper in body
