"""`steer new-plugin`: the start of a plugin, copied from the template that ships with the package."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SteerError
from ._output import AsJson, check_folder, out_option, print_json

LONGEST = 30
RULE = f"a letter, then letters, digits and single underscores, all lower case, at most {LONGEST}"


@dataclass(frozen=True)
class Names:
    """What a plugin's name is called where: in the template `my_plugin` stands for it."""

    method: str

    @property
    def package(self) -> str:
        """What is imported."""
        return f"steer_{self.method}"

    @property
    def distribution(self) -> str:
        """What is installed."""
        return self.package.replace("_", "-")

    @property
    def cls(self) -> str:
        """The method's class."""
        return "".join(part.capitalize() for part in self.method.split("_"))

    def put_into(self, text: str) -> str:
        """The template's text or path with these names."""
        hyphens = self.method.replace("_", "-")
        return text.replace("my_plugin", self.method).replace("my-plugin", hyphens).replace("MyPlugin", self.cls)


def command(
    name: Annotated[str, typer.Argument(help=f"The method's name: {RULE}.")],
    out: Annotated[Path | None, out_option("the plugin (steer-NAME)")] = None,
    json: AsJson = False,
) -> None:
    """Start a plugin of your own, a method with its tests.

    A package that can be installed, with an entry point by which steer finds it.
    """
    names = check_name(name)
    folder = out if out is not None else Path(names.distribution)
    check_folder(folder, "the plugin")
    if folder.exists() and any(folder.iterdir()):
        raise SteerError(f"{folder} holds something already; give --out a folder that is empty or not there yet")
    files = filled(names)
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    following = [f"cd {shlex.quote(str(folder))}", 'python -m pip install -e ".[test]"', "python -m pytest"]
    if json:
        made = {"method": name, "class": names.cls, "package": names.package, "distribution": names.distribution}
        print_json({**made, "folder": str(folder), "files": sorted(files), "next": following})
        return
    print(f"{folder}: the method {name} in a package of its own, {names.distribution}. Next:")
    print("\n".join(f"  {line}" for line in following))


def check_name(name: str) -> Names:
    """The names that go with a method's.

    Raises:
        SteerError: it breaks the rule, or a method, a package or a distribution has it already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > LONGEST:
        near = "_".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("0123456789_")[:LONGEST].rstrip("_")
        hint = f"; did you mean {near!r}?" if near else ""
        raise SteerError(f"{name!r} cannot be a method's name; the rule: {RULE}{hint}")
    names = Names(name)
    if keyword.iskeyword(names.cls):
        raise SteerError(f"{name!r} cannot be a method's name: its class would be {names.cls}, a word of Python's own")
    if taken := _taken_by(names):
        raise SteerError(f"the name {name!r} is taken: there is {taken} already; choose another")
    return names


def filled(names: Names) -> dict[str, str]:
    """The template's files by path, with the names in place."""
    folder = template()
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        names.put_into(path.as_posix()): names.put_into((folder / path).read_text(encoding="utf-8"))
        for path in paths
        # What is left there by whoever ran the template's own tests.
        if not {"__pycache__", ".pytest_cache", ".ruff_cache"} & set(path.parts)
    }


def template() -> Path:
    """Where the template is: in the package, or, in a clone that is installed as it stands, among the documents.

    Raises:
        SteerError: it is in neither place.
    """
    package = Path(__file__).parents[1]
    places = package / "_plugin_template", package.parent / "docs" / "plugin-template"
    for place in places:
        if (place / "pyproject.toml").is_file():
            return place
    raise SteerError(f"the plugin template is missing from this installation: it is not in {places[0]}")


def _taken_by(names: Names) -> str | None:
    from ..registry import methods

    found = methods().get(names.method)
    if found is not None:
        return f"the method {names.method!r} of {found.distribution}"
    if importlib.util.find_spec(names.package) is not None:
        return f"the package {names.package}"
    try:
        return f"the distribution {names.distribution} {version(names.distribution)}"
    except PackageNotFoundError:
        return None
