"""Running the command line in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory) -> Iterator[None]:
    """The names of methods are kept somewhere else, also by processes that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def steer_cli(capsys) -> Callable[..., Ran]:
    """`steer_cli("inspect", "tiny-vlm")` gives exit code, standard output and standard error."""
    from steer.cli import main

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        code = left.value.code
        return Ran(code if isinstance(code, int) else int(code is not None), out, err)

    return run


COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "fire extinguisher": (40, 40, 200), "red apple": (200, 200, 40)}
"""The classes of `pets`, and what colour their pictures are about."""


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """The folder of a tiny CLIP with random weights, with a processor, as `save_pretrained` writes them."""
    import transformers as hf

    from tests.prompts.models import build, tokenizer

    folder = tmp_path_factory.mktemp("clip")
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    build("clip")[0].save_pretrained(folder)
    hf.CLIPProcessor(image_processor=hf.CLIPImageProcessor(**sides), tokenizer=tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pets(tmp_path_factory) -> Path:
    """A folder with class folders in `train` (5 pictures a class), `val` (2) and `test` (3)."""
    folder = tmp_path_factory.mktemp("pets")
    for number, (split, count) in enumerate((("train", 5), ("val", 2), ("test", 3))):
        for place, name in enumerate(COLOURS):
            inside = folder / split / name.replace(" ", "_")
            inside.mkdir(parents=True)
            for i in range(count):
                picture_of(name, seed=1000 * number + 100 * place + i).save(inside / f"{i}.png")
    return folder


def picture_of(name: str, seed: int):
    """A picture of about the colour of a class, with noise."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(seed).integers(-40, 40, (16, 16, 3))
    return Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8))
