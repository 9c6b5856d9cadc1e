"""What constraints.txt pins: exactly, as installed here, known to the index, not withdrawn, and not known to be bad."""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[2]
INDEX = os.environ.get("STEER_INDEX", "https://pypi.org/simple")
# Ranges with a published advisory that would matter here, written down by hand and not checked against a database: a
# floor under the pins, and no more.
BAD = {
    "torch": ("<2.6", "CVE-2025-32434, code run by torch.load with weights_only"),
    "transformers": ("<4.53", "CVE-2025-2099 and others, patterns that take exponential time"),
    "pillow": ("<11.3", "CVE-2025-48379, a buffer written past its end; and, before 10.3, CVE-2024-28219"),
    "jinja2": ("<3.1.6", "CVE-2025-27516, out of the sandbox"),
    "requests": ("<2.32.4", "CVE-2024-47081, credentials to another host"),
    "urllib3": ("<2.5", "CVE-2025-50181, redirects that were to be off"),
    "h11": ("<0.16", "CVE-2025-43859, requests smuggled"),
    "setuptools": ("<78.1.1", "CVE-2025-47273, files written anywhere"),
    "virtualenv": ("<20.26.6", "CVE-2024-53899, commands from a path"),
    "scikit-learn": ("<1.5", "CVE-2024-5206, data kept in a vectoriser"),
    "tqdm": ("<4.66.3", "CVE-2024-34062, code in an argument"),
    "idna": ("<3.7", "CVE-2024-3651, time"),
    "fonttools": (">=4.33,<4.60.2", "CVE-2025-66034, files written anywhere by varLib"),
    "filelock": ("<3.20.1", "CVE-2025-68146, a link followed"),
}


def pins() -> dict[str, str]:
    """Version by canonical name.

    Raises:
        ValueError: a line pins nothing, or not one version.
    """
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        exact = re.fullmatch(r"==([^*,]+)", str(requirement.specifier))
        if exact is None or requirement.url or canonicalize_name(requirement.name) in found:
            raise ValueError(f"{line!r} pins no one version, or pins it again")
        found[canonicalize_name(requirement.name)] = exact.group(1)
    return found


PINS = pins()


def test_every_pin_is_of_a_final_version():
    assert len(PINS) > 50
    assert not [name for name, pinned in PINS.items() if Version(pinned).is_prerelease]


def test_what_is_installed_is_what_is_pinned():
    """Of what is pinned and is here; an environment without the constraints is another one, and says so."""
    differing = {}
    for name, pinned in PINS.items():
        try:
            here = Version(version(name))
        except PackageNotFoundError:
            continue
        if here.base_version != Version(pinned).base_version:  # torch's wheels for a card have a local part
            differing[name] = f"{here}, pinned {pinned}"
    if os.environ.get("STEER_UNPINNED"):
        pytest.skip(f"STEER_UNPINNED: {differing}")
    assert not differing


@pytest.mark.parametrize("name", sorted(set(BAD) & set(PINS)))
def test_no_pin_is_known_to_be_bad(name):
    bad, why = BAD[name]
    assert Version(PINS[name]) not in SpecifierSet(bad), why


def test_the_list_of_bad_ones_would_be_noticed():
    assert Version("2.5.1") in SpecifierSet(BAD["torch"][0])
    assert Version("3.1.5") in SpecifierSet(BAD["jinja2"][0])


def asked(name: str) -> dict[str, Any]:
    """What an index of the simple API says of a project; skips where there is none to ask."""
    request = urllib.request.Request(
        f"{INDEX}/{name}/", headers={"Accept": "application/vnd.pypi.simple.v1+json", "User-Agent": "steer-vlm tests"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        pytest.skip(f"{INDEX} does not answer for {name}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("name", PINS)
def test_every_pin_exists_and_was_not_withdrawn(name):
    """By the index; `STEER_INDEX` names another one."""
    dashed = {name.replace("-", mark) for mark in "-_."}
    files = [one for one in asked(name)["files"] if _version_of(one["filename"], dashed) == Version(PINS[name])]
    assert files, f"the index has no {name} {PINS[name]}"
    assert not all(one.get("yanked") for one in files), f"{name} {PINS[name]} was withdrawn"


def _version_of(file: str, names: set[str]) -> Version | None:
    stem = re.sub(r"\.(tar\.gz|zip|whl)$", "", file)
    for name in names:
        if stem.lower().startswith(f"{name}-"):
            with contextlib.suppress(InvalidVersion):  # of files from before there were rules
                return Version(stem[len(name) + 1 :].split("-")[0])
    return None
