"""Whatever a file holds, reading it gives what could have been written, or one error of steer's, soon and in bounds."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from steer.errors import SteerError
from tests.files.toy import ToyPlugin

from .guard import bounded, in_time, watched
from .loaders import LOADERS, Loader

# `STEER_FUZZ=2000 STEER_FUZZ_SEED=7 pytest tests/trust/test_fuzz_files.py`: more files, others at another seed.
EXAMPLES = int(os.environ.get("STEER_FUZZ", "60"))
SEED = os.environ.get("STEER_FUZZ_SEED")
SECONDS, BYTES = 20.0, 256 * 2**20


def fuzzed(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=SEED is None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", params=LOADERS)
def loader(request, tmp_path_factory):
    """A way to read, and a folder that it reads."""
    from steer._plugins import manager

    plugin = ToyPlugin()
    manager().register(plugin, name="toy")
    folder = tmp_path_factory.mktemp("valid")
    found = LOADERS[request.param]
    found.make(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found.read(shutil.copytree(folder, folder.parent / "copy", dirs_exist_ok=True))
    yield found, folder, request.param
    manager().unregister(plugin)


@pytest.mark.parametrize("examples", [EXAMPLES, pytest.param(40 * EXAMPLES, marks=pytest.mark.slow)])
def test_a_changed_file_is_refused_or_right(loader, tmp_path, examples):
    way, folder, _ = loader

    @fuzzed(examples)
    @given(changes=way.change(folder))
    def run(changes: dict[str, bytes]) -> None:
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        for name, data in changes.items():
            (work / name).write_bytes(data)
        refused_or_right(way, work)

    (run if SEED is None else seed(int(SEED))(run))()


def refused_or_right(way: Loader, folder: Path) -> None:
    """Read, and look at what comes of it."""
    said = None
    with warnings.catch_warnings(), bounded(BYTES), watched(folder), in_time(SECONDS):
        warnings.simplefilter("ignore")
        try:
            way.read(folder)
        except SteerError as error:
            said = str(error)
    assert said is None or said.strip()
    # A list of what differs may be long; a whole value from the file may not be in it.
    assert said is None or len(said) < 20_000
