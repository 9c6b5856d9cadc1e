"""`steer demo`: what demonstrations do to a small model, in the prompt and as vectors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SteerError
from ._output import AsJson, print_json, print_table, quiet_in_a_pipe

if TYPE_CHECKING:
    from .._demo import Row

METHODS = ["icv", "task_vector", "function_vector"]


def command(
    task: Annotated[
        str, typer.Option(help="A task of the zoo, such as colour, count, kind or if-animal.")
    ] = "position",
    method: Annotated[list[str] | None, typer.Option(help="Which methods; may be given several times.")] = None,
    shots: Annotated[int, typer.Option(min=4, max=16, help="Demonstrations, for the prompt and for the methods.")] = 16,
    queries: Annotated[int, typer.Option(min=1, help="Held-out pictures to ask about.")] = 120,
    seed: Annotated[int, typer.Option(help="Of the choice of pictures and whatever else is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("steer-demo.png"),
    json: AsJson = False,
) -> None:
    """Teach the shipped model a task by demonstrations: in its prompt, and as vectors that stand for them."""
    import time

    from .. import zoo
    from .._demo import Demo
    from .._demo_picture import draw
    from .._inspecting import inspect
    from ..files import write_whole

    start = time.perf_counter()
    _quiet()
    if not out.absolute().parent.is_dir():
        raise SteerError(f"there is no folder {out.absolute().parent} to write {out.name} into")
    model, processor = zoo.load("tiny-vlm")
    demo = Demo(model, processor, task, shots, queries, seed)
    if not json:
        print(inspect(model))
        asks = f"The question is {demo.asked[0].question!r}; there are {shots} demonstrations."
        print(f"\ntask {task!r}: {demo.about}. {asks}\n", flush=True)
    with _one_thread():
        demo.run(METHODS if method is None else method)
    write_whole(out.absolute(), _png(draw(demo)))
    seconds = time.perf_counter() - start
    if json:
        data = {"task": task, "about": demo.about, "shots": shots, "queries": queries, "seed": seed}
        rows = [row.to_dict() for row in demo.rows]
        print_json({**data, "rows": rows, "picture": str(out.absolute()), "seconds": round(seconds, 1)})
        return
    columns = ("", "accuracy", "tokens / query", "ms / query", "s to fit")
    print_table(columns, [_cells(row) for row in demo.rows])
    print(f"accuracy: on {queries} held-out pictures, ± one standard error")
    print("ms: the median for one query at a time, its picture and two new tokens included")
    print(f"methods see the demonstrations; a layer is chosen on {len(demo.dev)} other pictures, not asked about")
    for name, settings in demo.settings.items():
        print(f"{name}: {', '.join(f'{key}={value}' for key, value in settings.items())}")
    print(f"picture: {out.absolute()}   ({seconds:.0f} s in all)")


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
