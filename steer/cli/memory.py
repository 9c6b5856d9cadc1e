"""`steer memory`: demonstrations read once, pruned, and kept in a folder to be asked again and again."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SteerError, unknown_name
from ._asking import Images, MaxNewTokens, Prompt, Template, config_option, method_option
from ._data import Data, Limit, Seed, data_option, examples
from ._model import Device, Dtype, ModelName, load
from ._output import AsJson, Png, check_file, check_folder, out_option, print_json, print_table, quiet_in_a_pipe

if TYPE_CHECKING:
    from ..examples import Example
    from ..memory import MemoryMethod

app = typer.Typer(no_args_is_help=True, help="Read demonstrations once, keep a small cache, ask it often.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A saved memory's folder.")]


@app.command()
def build(
    model: ModelName,
    data: Data,
    method: Annotated[str, method_option("one that makes memories, by its name")],
    out: Annotated[Path, out_option("the memory")],
    config: Annotated[list[str] | None, config_option("the method")] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Demonstrations that are read at a time.")] = 4,
    probes: Annotated[int, typer.Option(min=0, help="Examples held out of --data for the certificate.")] = 0,
    no_certificate: Annotated[
        bool, typer.Option("--no-certificate", help="Do not compare with the whole context, which is read once for it.")
    ] = False,
    template: Template = None,
    seed: Seed = 0,
    limit: Limit = None,
    device: Device = None,
    dtype: Dtype = None,
    json: AsJson = False,
) -> None:
    """Read demonstrations, and save what a method keeps of them.

    The certificate says how far answers are from those after the whole context.
    """
    from ..memory.files import read
    from ._memory import summary

    quiet_in_a_pipe()
    check_folder(out, "the memory")
    made = _method(method, config or [])
    if probes and no_certificate:
        raise SteerError("--probes are for the certificate; leave them or --no-certificate out")
    taken = {"source": data, "seed": seed, "limit": limit, "probes": probes}
    shown, held = _demonstrations(data, seed, limit, probes)
    loaded, processor = load(model, device, dtype)
    start = time.perf_counter()
    memory = made.build(
        loaded,
        processor,
        shown,
        chunk=chunk,
        template=template,
        probes=held,
        certify=not no_certificate,
        progress=not json,
    )
    seconds = time.perf_counter() - start
    memory = replace(memory, info={**memory.info, "data": taken}).bind(loaded)
    memory.save(out, processor)
    saved = read(out)
    if json:
        print_json({**summary(saved), "seconds": round(seconds, 3), "out": str(out.absolute())})
        return
    _print(saved)
    print(f"read {len(shown)} demonstrations in {seconds:.1f} s; saved: {out.absolute()}")


@app.command()
def show(
    folder: Folder,
    png: Png = None,
    data: Annotated[
        str | None,
        data_option(more="What the memory was built of: with --png, the patches of its pictures are drawn too."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Say what a saved memory kept, and how well; needs no model.

    The picture has layers down and tokens across.
    """
    from ..memory.files import read
    from ._memory import summary

    check_file(png)
    saved = read(folder)
    if data is not None and png is None:
        raise SteerError("--data is for the picture: give --png FILE too")
    if png is not None:
        from ..memory.pictures import draw

        pictures = [] if data is None else [image for one in _read_by(saved, data) for image in one.images]
        tensors = saved.tensors
        draw(saved.layers(), tensors["images"], tensors["mask"], png, pictures)
    if json:
        print_json(summary(saved))
    else:
        _print(saved)
        if png is not None:
            print(f"picture: {png.absolute()}")


@app.command()
def ask(
    folder: Folder,
    model: ModelName,
    prompt: Prompt,
    image: Images = None,
    max_new_tokens: MaxNewTokens = 8,
    device: Device = None,
    dtype: Dtype = None,
    json: AsJson = False,
) -> None:
    """Answer a prompt after what a memory has read."""
    from ..data import opened
    from ..examples import Example
    from ..memory import Memory

    quiet_in_a_pipe()
    pictures = tuple(opened(path) for path in image or ())
    loaded, processor = load(model, device, dtype)
    memory = Memory.load(folder, loaded, processor=processor)
    query = Example(prompt, images=pictures)
    template = memory.info.get("template")
    answer = memory.ask(loaded, processor, [query], template=template, max_new_tokens=max_new_tokens)[0]
    if json:
        print_json({"memory": str(folder.absolute()), "model": model, "prompt": prompt, "answer": answer})
    else:
        print(answer)


def _method(name: str, pairs: list[str]) -> MemoryMethod:
    """The method, with its fields set.

    Raises:
        SteerError: it does not exist, or makes no memories.
    """
    from ..memory import MemoryMethod
    from ..registry import create, method_class, methods
    from ._settings import config_hints, parse

    cls = method_class(name)
    if not issubclass(cls, MemoryMethod):
        able = [one for one in methods() if issubclass(method_class(one), MemoryMethod)]
        raise unknown_name("method that makes memories", name, able, f"{name!r} is fitted: `steer fit {name}`")
    made = create(name, **parse(pairs, config_hints(cls), "--config", f"configuration field of method {name!r}"))
    assert isinstance(made, MemoryMethod)
    return made


def _demonstrations(source: str, seed: int, limit: int | None, probes: int) -> tuple[list[Example], list[Example]]:
    """The demonstrations in their order, and those held out."""
    found = examples(source, "train", limit, seed)
    if probes >= len(found):
        raise SteerError(f"{source} has {len(found)} examples: {probes} cannot be held out of them; lower --probes")
    held = set(random.Random(seed).sample(range(len(found)), probes))
    return [one for i, one in enumerate(found) if i not in held], [found[i] for i in sorted(held)]


def _read_by(saved: Any, data: str) -> list[Example]:
    """The demonstrations that a memory was built of."""
    from ..method import _describe

    taken = saved.record["info"].get("data")
    taken = taken if isinstance(taken, dict) else {}
    shown, _ = _demonstrations(data, taken.get("seed") or 0, taken.get("limit"), taken.get("probes") or 0)
    if _describe(shown) != saved.record["info"].get("demonstrations"):
        raise SteerError(f"{data} is not what this memory was built of: its demonstrations differ")
    return shown


def _print(saved: Any) -> None:
    from ._memory import certificate_lines, layer_rows

    columns = ("layer", "kept", "of", "share", "bytes on disk", "least in a head", "most")
    print_table(columns, layer_rows(saved))
    for line in certificate_lines(saved):
        print(line)
