"""`steer eval`: how well a model answers or names classes, alone, after demonstrations and with methods."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SteerError
from ._asking import SAVED, Config, method_option
from ._data import LABELLED, Pool, Seed, data_option, examples, limit_option, shots_option
from ._eval_out import Output
from ._labelled import Classes, Read, SkipUnreadable, Wanted, refuse
from ._model import BatchSize, Device, Dtype, ModelName, load, shared_weights
from ._named import methods_of, reads_of
from ._output import AsJson, out_option, quiet_in_a_pipe
from ._resuming import resumable

if TYPE_CHECKING:
    from ..examples import Example

DEFAULT_LENGTH = 8
_BY_NAME = f"{SAVED}, or the name of one that needs no fitting; repeatable, each a row of its own"
_DATA = LABELLED.format(role="test") + " With --suite: a file that it is published in. Repeatable."


def command(
    model: ModelName,
    data: Annotated[list[str], data_option("test", _DATA)],
    method: Annotated[list[str] | None, method_option(_BY_NAME)] = None,
    config: Config = None,
    suite: Annotated[str | None, typer.Option(help="A public benchmark: pope, chair, or a plugin's.")] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With --suite: the folder that holds the pictures.")
    ] = None,
    wording: Annotated[
        str | None, typer.Option(help="With --suite: how every row puts a question, with {question} for its words.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="The user's words. With --suite: one more row of the model alone, with this wording; repeatable."
        ),
    ] = None,
    shots: Annotated[int, shots_option("demonstrations in the prompt, in one more row")] = 0,
    pool: Pool = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="The hand-written prompt of the baseline, with {} for a class; several are averaged."),
    ] = None,
    classes: Classes = None,
    base_new: Annotated[
        bool, typer.Option("--base-new", help="Measure the two halves of the classes, and their harmonic mean.")
    ] = False,
    read: Read = None,
    skip_unreadable: SkipUnreadable = False,
    seed: Seed = 0,
    limit: Annotated[int | None, limit_option("examples of each --data")] = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help=f"How much to write at most: {DEFAULT_LENGTH}, or what the suite says."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Annotated[Path | None, out_option("everything, with every answer", "FILE")] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where answers are kept as they come, to go on from; by default beside --out until that is written.",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure how well a model answers, alone and with methods.

    On examples, labelled pictures or a benchmark. Under `accelerate launch` the processes share the work; the same
    command goes on with a run that was interrupted.
    """
    from .._processes import leave_together
    from . import _eval_suite

    quiet_in_a_pipe()
    output = Output(out, answers, json)
    of_suites = {"--images": images, "--wording": wording, "--prompt": prompt}
    of_others = {"--shots": shots, "--pool": pool, "--template": template, "--classes": classes, "--read": read}
    of_others |= {"--base-new": base_new, "--skip-unreadable": skip_unreadable}
    _eval_suite.refuse(suite, of_suites, of_others)
    named, settings = method or [], config or []
    record: dict[str, Any] = {"model": model, "data": data, "methods": named, "config": settings}
    if suite is not None:
        bench, questions = _eval_suite.read(suite, data, images, limit)
        loaded, processor = _load(model, device, dtype)
        ways = _eval_suite.ways(methods_of(loaded, named, settings), wording, prompt or [])
        of_suite = _eval_suite.Asked(bench, questions, output.folder, batch_size, max_new_tokens, seed)
        record |= {"suite": suite, "images": str(images), "questions": len(questions)}
        with resumable(output.folder):
            _eval_suite.run(loaded, processor, of_suite, ways, record, output)
        leave_together(loaded)
        return
    if (shots > 0) != (pool is not None):
        raise SteerError("--shots and --pool go together: how many demonstrations, and where they come from")
    record |= {"seed": seed, "batch_size": batch_size}
    what, reads = _reads(named)
    held = _load(model, device, dtype) if reads is None else None
    if held is not None:
        what, reads = model, _suits(held[0])
    if reads == "labelled":
        from . import _eval_labelled

        refuse(what, reads, {"--shots": shots})
        if base_new and len(data) > 1:
            raise SteerError(f"--base-new halves the classes of one --data, and {len(data)} are given; ask one by one")
        wanted = Wanted(classes, read or [], skip_unreadable, limit, seed)
        pictures, names = _pictures(wanted, data)
        loaded, processor = held or _load(model, device, dtype)
        methods: dict[str, Any] = methods_of(loaded, named, settings, reads)
        asked = _eval_labelled.Asked(pictures, names, base_new, batch_size, loaded, output.folder)
        record |= {"pictures": len(asked.examples), "classes": names, "base_new": base_new}
        with resumable(output.folder):
            _eval_labelled.run(processor, asked, methods, template or [], record, output)
        leave_together(loaded)
        return
    from . import _eval_examples

    given = {"--classes": classes, "--read": read, "--skip-unreadable": skip_unreadable}
    refuse(what, "examples", {**given, "--template": template, "--base-new": base_new})
    length = DEFAULT_LENGTH if max_new_tokens is None else max_new_tokens
    sources = [(source, examples(source, "test", limit, seed)) for source in data]
    shown = examples(pool, "train", None, seed) if pool is not None else []
    of_examples = _eval_examples.Asked(sources, shots, shown, seed, batch_size, length)
    loaded, processor = held or _load(model, device, dtype)
    methods = methods_of(loaded, named, settings)
    record |= {"examples": len(of_examples.examples), "shots": shots, "pool": pool, "max_new_tokens": length}
    with resumable(output.folder):
        _eval_examples.run(loaded, processor, of_examples, methods, record, output)
    leave_together(loaded)


def _reads(named: list[str]) -> tuple[str, str | None]:
    """One of the methods, and what all of them are measured on; None where there are none.

    Raises:
        SteerError: some are measured on examples, others on labelled pictures.
    """
    kinds = {one: reads_of(one) for one in named}
    for one, reads in kinds.items():
        if reads != kinds[named[0]]:
            raise SteerError(
                f"{named[0]} is measured on {kinds[named[0]]}, {one} on {reads}; measure them one after the other"
            )
    return (f"method {named[0]}", kinds[named[0]]) if named else ("", None)


def _load(name: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """Model and processor; the weights spread over the processes where accelerate was told so."""
    loaded, processor = load(name, device, dtype)
    if shared_weights():
        from ..training import shard

        shard(loaded)
    return loaded, processor


def _suits(model: Any) -> str:
    """What a model is measured on by itself."""
    from ..session import map_of

    return "labelled" if map_of(model).streams is not None else "examples"


def _pictures(wanted: Wanted, data: Sequence[str]) -> tuple[list[tuple[str, Sequence[Example]]], list[str]]:
    """Each source with its pictures, and the names of the classes of all of them."""
    found: list[tuple[str, Sequence[Example]]] = []
    classes: dict[str, None] = {}
    for source in data:
        pictures, names = wanted.of(source, "test")
        found.append((source, pictures))
        classes |= dict.fromkeys(names)
    return found, list(classes) if wanted.classes is not None else sorted(classes)
