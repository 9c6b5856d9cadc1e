"""`steer fit`: a method fitted on examples or labelled pictures, and saved."""

from __future__ import annotations

import inspect
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SteerError
from ._asking import config_option
from ._complete import methods, offer
from ._data import LABELLED, Limit, Seed, data_option, examples, shots_option
from ._labelled import Classes, Read, SkipUnreadable, Wanted, refuse
from ._model import Device, Dtype, ModelName, is_main_process, load, shared_weights
from ._output import AsJson, check_folder, out_option, print_json, print_table, quiet_in_a_pipe
from ._resuming import checkpoints_option, resumable

if TYPE_CHECKING:
    from .._evaluating import Row
    from ..examples import Example
    from ..method import Method


def command(
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD", help="A method's name; `steer methods` lists them.", autocompletion=offer(methods)
        ),
    ],
    model: ModelName,
    data: Annotated[str, data_option("train", LABELLED.format(role="train"))],
    out: Annotated[Path, out_option("the method")],
    dev: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="What to choose by, as --data; else a quarter of the examples, or none of the labelled pictures.",
        ),
    ] = None,
    shots: Annotated[int | None, shots_option("labelled pictures of each class", least=1)] = None,
    allow_fewer: Annotated[
        bool, typer.Option("--allow-fewer", help="With --shots: take what there is of classes that have fewer.")
    ] = False,
    classes: Classes = None,
    base: Annotated[
        bool, typer.Option("--base", help="Only the base half of the classes, for steer eval --base-new.")
    ] = False,
    read: Read = None,
    skip_unreadable: SkipUnreadable = False,
    augment: Annotated[
        str | None, typer.Option(help="How pictures are perturbed in each step, as the method's fit says.")
    ] = None,
    sentences: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A JSON file: for each class a list of sentences about it.")
    ] = None,
    config: Annotated[list[str] | None, config_option("the method")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of fitting, such as lr; repeatable."),
    ] = None,
    seed: Seed = 0,
    limit: Limit = None,
    device: Device = None,
    dtype: Dtype = None,
    checkpoints: Annotated[Path | None, checkpoints_option("OUT/checkpoints")] = None,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Do not remove OUT/checkpoints at the end.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Learn a method from examples or labelled pictures.

    The same command goes on with a fit that was interrupted.
    """
    from .._processes import leave_together
    from ..registry import create, method_class
    from ..training import shard
    from . import _fit_labelled
    from ._settings import config_hints, fit_hints, parse

    quiet_in_a_pipe()
    cls = method_class(method)
    fields = parse(config or [], config_hints(cls), "--config", f"configuration field of method {method!r}")
    options = parse(set_ or [], fit_hints(cls), "--set", f"option of fit of method {method!r}")
    options |= _fit_labelled.of_the_method(cls, augment, sentences)
    folder = _checkpoint_folder(cls, out, checkpoints)
    labelled = cls.reads == "labelled"
    if labelled:
        # Made once without pictures: a field that cannot be is told before they are read.
        _fit_labelled.must_learn(create(method, **fields))
        wanted = Wanted(classes, read or [], skip_unreadable, limit, seed)
        fitted_on, chosen_by, names = _fit_labelled.pictures(wanted, data, dev, shots, allow_fewer, base)
        fields = _fit_labelled.with_classes(cls, fields, names, classes)
    else:
        given = {"--shots": shots, "--allow-fewer": allow_fewer, "--classes": classes, "--base": base, "--read": read}
        refuse(f"method {method!r}", cls.reads, {**given, "--skip-unreadable": skip_unreadable})
        fitted_on, chosen_by = _examples(data, dev, limit, seed)
    made = create(method, **fields)
    loaded, processor = load(model, device, dtype)
    if shared_weights():
        shard(loaded)
    takes = inspect.signature(cls.fit).parameters
    options |= {"dev": chosen_by or None} if "dev" in takes else {}
    options |= {"folder": folder} if folder is not None else {}
    options |= {"progress": is_main_process()} if "progress" in takes else {}
    start = time.perf_counter()
    with resumable(folder):
        made.fit(loaded, processor, fitted_on, seed=seed, **options)
    seconds = time.perf_counter() - start
    _wait_for_all()
    if is_main_process():
        made.save_pretrained(out)
        if folder is not None and checkpoints is None and not keep_checkpoints:
            shutil.rmtree(folder, ignore_errors=True)
    record: dict[str, Any] = {"method": method, "model": model, "data": data, "examples": len(fitted_on)}
    record |= {"dev_examples": len(chosen_by), "seed": seed, "seconds": round(seconds, 3), "out": str(out.absolute())}
    if labelled:
        _fit_labelled.report(loaded, processor, made, fitted_on, chosen_by, record, json)
    else:
        before, after = _measured(loaded, processor, made, chosen_by)
        if is_main_process():
            _report(made, before, after, record, bool(dev), json)
    leave_together(loaded)


def _report(method: Method, before: Row, after: Row, record: dict[str, Any], given: bool, json: bool) -> None:
    numbers = sum(tensor.numel() for tensor in method.tensors.values())
    if json:
        print_json({**record, "before": before.to_dict(), "after": after.to_dict(), "numbers": numbers})
        return
    columns = ("method", "examples", "dev accuracy before", "after", "begins right", "numbers learned", "s to fit")
    begins = "-" if after.begins is None else f"{after.begins:.3f}"
    accuracies = f"{before.accuracy:.3f}", f"{after.accuracy:.3f}", begins
    counts = str(record["examples"]), *accuracies, f"{numbers:,}", f"{record['seconds']:.1f}"
    print_table(columns, [(method.name, *counts)])
    held = "" if given else ", held out of --data"
    chosen = f"{record['dev_examples']} examples{held}"
    print(f"dev: {chosen}, which the method may have chosen by; test it with `steer eval`")
    print(f"saved: {record['out']}")


def _checkpoint_folder(cls: type[Method], out: Path, asked: Path | None) -> Path | None:
    """Where checkpoints go; None for a method that makes none."""
    check_folder(out, "the method")
    if "folder" in inspect.signature(cls.fit).parameters:
        return asked or out / "checkpoints"
    if asked is not None:
        raise SteerError(f"method {cls.name!r} is fitted in one go and makes no checkpoints; leave --checkpoints out")
    return None


def _examples(data: str, dev: str | None, limit: int | None, seed: int) -> tuple[list[Example], list[Example]]:
    """The examples to fit on, and those to choose and to measure by."""
    from ..fitting import hold_out

    found = examples(data, "train", limit, seed)
    if dev is not None:
        return found, examples(dev, "dev", None, seed)
    if len(found) < 2:
        raise SteerError(f"{data} has {len(found)} example; give more, or --dev, so that some can be held out")
    return hold_out(found, seed=seed)


def _measured(model: Any, processor: Any, method: Method, queries: list[Example]) -> tuple[Row, Row]:
    """On held-out examples, without the method and with it; the processes share them."""
    from .._evaluating import Evaluation, Way

    run, template = Evaluation(model, processor, queries, shared=True), getattr(method, "template", None)
    return run.measure(Way("before", template=template)), run.measure(Way("after", method, template=template))


def _wait_for_all() -> None:
    """No process may still be reading the checkpoints that the first one is about to remove."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
