"""`steer demo`: what demonstrations do to a small model, in the prompt and as vectors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._asking import method_option
from ._complete import offer, tasks
from ._data import Seed, limit_option, shots_option
from ._model import Device, Dtype, load
from ._output import AsJson, Png, check_file, print_json, print_table, quiet_in_a_pipe

if TYPE_CHECKING:
    from .._demo import Row

MODEL = "tiny-vlm"


def command(
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK",
            help="A task of the zoo, such as colour, count, kind or if-animal.",
            autocompletion=offer(tasks),
        ),
    ] = "position",
    method: Annotated[
        list[str] | None, method_option("by its name; repeatable; by default those with settings for this demo")
    ] = None,
    shots: Annotated[int, shots_option("demonstrations, for the prompt and for the methods", least=4, most=16)] = 16,
    limit: Annotated[int, limit_option("held-out pictures that are asked about")] = 120,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    png: Png = Path("steer-demo.png"),
    json: AsJson = False,
) -> None:
    """See in a minute what this is about, on the shipped model.

    It is taught a task by demonstrations: in its prompt, and as vectors that stand for them.
    """
    import time

    from .._demo import Demo, shown
    from .._demo_picture import draw
    from .._inspecting import inspect
    from ..files import write_whole

    start = time.perf_counter()
    _quiet()
    check_file(png)
    model, processor = load(MODEL, device, dtype)
    demo = Demo(model, processor, task, shots, limit, seed)
    if not json:
        print(inspect(model))
        asks = f"The question is {demo.asked[0].question!r}; there are {shots} demonstrations."
        print(f"\ntask {task!r}: {demo.about}. {asks}\n", flush=True)
    with _one_thread():
        demo.run(method or shown())
    if png is not None:
        write_whole(png.absolute(), _png(draw(demo)))
    seconds = time.perf_counter() - start
    if json:
        data = {"task": task, "about": demo.about, "shots": shots, "limit": limit, "seed": seed}
        rows = [row.to_dict() for row in demo.rows]
        print_json({**data, "rows": rows, "png": png and str(png.absolute()), "seconds": round(seconds, 1)})
        return
    columns = ("", "accuracy", "tokens / query", "ms / query", "s to fit")
    print_table(columns, [_cells(row) for row in demo.rows])
    print(f"accuracy: on {limit} held-out pictures, ± one standard error")
    print("ms: the median for one query at a time, its picture and two new tokens included")
    print(f"methods see the demonstrations; a layer is chosen on {len(demo.dev)} other pictures, not asked about")
    for name, settings in demo.settings.items():
        print(f"{name}: {', '.join(f'{key}={value}' for key, value in settings.items())}")
    print(f"saved: {png and png.absolute()}   ({seconds:.0f} s in all)")


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    accuracy = f"{row.accuracy:.2f} ± {row.standard_error:.2f}"
    return row.name, accuracy, number(row.tokens, ".0f"), number(row.ms, ".1f"), number(row.seconds, ".1f")


def _png(picture: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


@contextmanager
def _one_thread() -> Iterator[None]:
    """More threads cost more than they give in a model of this size, the more so on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _quiet() -> None:
    """The demo's output is its own: no notes from transformers in between."""
    import warnings

    from transformers.utils import logging

    quiet_in_a_pipe()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
