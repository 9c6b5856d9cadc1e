"""Runs what a library has and prints it: one JSON object on the last line, which collect.py keeps."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import metadata, version
from typing import Any

from probes import PROBES, Found, Library, heads, said


def report(library: Library, **more: Callable[[], Any]) -> None:
    """Run what the library has and print it all as JSON; `more` are probes of its own."""
    about = metadata(library.name)
    found: dict[str, Any] = {
        "library": library.name,
        "version": version(library.name),
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": sys.version.split()[0],
        "torch": version("torch"),
        "transformers": version("transformers"),
        "on": library.on,
        "requires": [
            r for r in about.get_all("Requires-Dist") or [] if r.split()[0].startswith(("transformers", "torch"))
        ],
        "licence": about.get("License-Expression") or (about.get("License") or "see its page").splitlines()[0],
        "probes": {},
    }
    given: dict[str, Any] = {field.name: getattr(library, field.name) for field in fields(library)}
    if given["zero_head"] is not None:
        found["heads"] = heads(library)
    for probe in PROBES:
        if given[probe.__name__] is not None:
            found["probes"][probe.__name__] = outcome(lambda probe=probe: probe(library))
    for name, probe in more.items():
        found["probes"][name] = outcome(probe)
    print("\n" + json.dumps(found))


def outcome(probe: Callable[[], Found]) -> dict[str, Any]:
    try:
        passed, detail = probe()
    except Exception as error:
        traceback.print_exc()
        return {"passed": False, "detail": said(error)}
    return {"passed": bool(passed), "detail": detail}
