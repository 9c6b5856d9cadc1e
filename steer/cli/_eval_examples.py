"""`steer eval` on examples: the model alone first, after demonstrations, and with each method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._eval_out import Output, names_of
from ._model import is_main_process
from ._output import print_table
from ._several import Several

if TYPE_CHECKING:
    from .._evaluating import Row, Way
    from ..examples import Example
    from ..method import Method


@dataclass(frozen=True)
class Asked(Several):
    """What is asked, and how.

    Attributes:
        shots: demonstrations in a prompt of one more row; 0 for no such row.
        pool: from which these are drawn.
        seed: of that.
        batch_size: prompts in one forward.
        max_new_tokens: written at most.
    """

    shots: int
    pool: Sequence[Example]
    seed: int
    batch_size: int
    max_new_tokens: int


def run(
    model: Any, processor: Any, asked: Asked, methods: dict[str, Method], record: dict[str, Any], output: Output
) -> None:
    """Ask in every way, print, and write what is to be written; `record` says where it all came from."""
    from .._evaluating import Evaluation

    one = Evaluation(
        model, processor, asked.examples, asked.batch_size, asked.max_new_tokens, output.folder, shared=True
    )
    rows = [one.measure(way) for way in _ways(methods, asked)]
    if not is_main_process():  # all of them have measured by now
        return
    plain = [_plain(row, asked) for row in rows]
    output.print(record, plain)
    if not output.json:
        _table(rows, asked)
    output.write(record, plain, _said(rows, asked))


def _ways(methods: dict[str, Method], asked: Asked) -> Iterator[Way]:
    """The model alone, once for each way of writing a prompt that a method uses; then the rest."""
    from .._evaluating import Way
    from ..demonstrations import Demonstrations

    for template in dict.fromkeys([None, *(getattr(method, "template", None) for method in methods.values())]):
        yield Way("zero-shot" + ("" if template is None else f", template {template!r}"), template=template)
    if asked.shots:
        told = Demonstrations(tuple(asked.pool), asked.shots, seed=asked.seed)
        yield Way(f"{asked.shots}-shot in context", demonstrations=told)
    for name, method in zip(names_of(methods), methods.values(), strict=True):
        yield Way(name, method, template=getattr(method, "template", None))


def _plain(row: Row, asked: Asked) -> dict[str, Any]:
    """Plain data of a row: all queries together, and where there are several sources, each of them."""
    if len(asked.sources) == 1:
        return row.to_dict()
    each = [{**row.of(places).to_dict(), "name": source} for source, places in asked.places()]
    return {**row.to_dict(), "by_data": each}


def _said(rows: Sequence[Row], asked: Asked) -> list[dict[str, Any]]:
    """By query: what was asked, what is right and what each way said."""
    sources = [source for source, found in asked.sources for _ in found]
    return [
        {
            "data": source,
            "question": query.question,
            "answer": query.answer,
            "said": {row.name: row.said[i].text for row in rows},
        }
        for i, (source, query) in enumerate(zip(sources, asked.examples, strict=True))
    ]


def _table(rows: Sequence[Row], asked: Asked) -> None:
    columns = ("accuracy", "95 % interval", "begins right", "log-prob", "tokens / query", "ms / query")
    if len(asked.sources) == 1:
        print_table(("", *columns), [(row.name, *_cells(row)) for row in rows])
    else:
        parts = asked.places() + [("all", list(range(len(asked.examples))))]
        print_table(
            ("", "data", *columns),
            [
                (row.name if i == 0 else "", source, *_cells(row.of(places)))
                for row in rows
                for i, (source, places) in enumerate(parts)
            ],
        )
    print(f"accuracy: on {len(asked.examples)} examples, the whole answer, case aside; interval: Wilson's")
    print("begins right: whatever follows; like log-prob not measured for a method that answers in a way of its own")
    size = asked.batch_size
    print(f"log-prob: of the right answer, mean; ms: batches of {size}, making inputs and writing included")


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    low, high = row.interval
    measured = number(row.begins, ".3f"), number(row.log_prob, ".3f"), number(row.tokens, ".0f"), number(row.ms, ".1f")
    return f"{row.accuracy:.3f}", f"{low:.3f} to {high:.3f}", *measured
