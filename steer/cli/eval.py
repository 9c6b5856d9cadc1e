"""`steer eval`: how well a model answers or names classes, alone, after demonstrations and with saved methods."""

from __future__ import annotations

import json as _json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SteerError
from ._data import examples
from ._labelled import Classes, Read, SkipUnreadable, Wanted, refuse
from ._model import Device, Dtype, ModelName, load
from ._output import AsJson, print_json, print_table, quiet_in_a_pipe

if TYPE_CHECKING:
    from .._evaluating import Evaluation, Row, Way

DEFAULT_LENGTH = 8


def command(
    model: ModelName,
    data: Annotated[
        list[str],
        typer.Option(
            help="A folder (its test.jsonl, or its only file), a .jsonl file or zoo:TASK. Labelled pictures: class "
            "folders (in test, if it is there), a .csv, .tsv or .jsonl file, a Hugging Face data set, or zoo:SET. "
            "With --suite: a file that it is published in; repeatable."
        ),
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A saved method's folder or hub id; each one given is a row of its own. With --suite also the name of "
            "a method that needs no fitting."
        ),
    ] = None,
    suite: Annotated[str | None, typer.Option(help="A public benchmark: pope, chair, or a plugin's.")] = None,
    images: Annotated[Path | None, typer.Option(help="With --suite: the folder that holds the pictures.")] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="With --suite: key=value, a field of the --method given by name; name.key=value of one of several."
        ),
    ] = None,
    wording: Annotated[
        str | None, typer.Option(help="With --suite: how every row puts a question, with {question} for its words.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="With --suite: one more row of the model alone, with this wording; repeatable."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="With --suite: a .jsonl file that keeps answers as they come, and from which a run goes on."),
    ] = None,
    shots: Annotated[int, typer.Option(min=0, help="Also with so many demonstrations in the prompt.")] = 0,
    pool: Annotated[str | None, typer.Option(help="Where these come from: as --data, its train.jsonl.")] = None,
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
    seed: Annotated[int, typer.Option(help="Of the choice of demonstrations and of the zoo's pictures.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask so many examples at most.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts or pictures in one forward.")] = 16,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"How much to write at most; {DEFAULT_LENGTH}, or what the suite says.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write, with every answer.")] = None,
    json: AsJson = False,
) -> None:
    """Measure examples, labelled pictures or a benchmark: always the model alone, and each method beside it."""
    from . import _eval_suite

    record: dict[str, Any]
    quiet_in_a_pipe()
    for file in (out, answers):
        if file is not None and not file.absolute().parent.is_dir():
            raise SteerError(f"there is no folder {file.absolute().parent} to write {file.name} into")
    of_suites = {"--images": images, "--config": config, "--wording": wording, "--prompt": prompt, "--answers": answers}
    of_others = {"--shots": shots, "--pool": pool, "--template": template, "--classes": classes, "--read": read}
    of_others |= {"--base-new": base_new, "--skip-unreadable": skip_unreadable}
    _eval_suite.refuse(suite, of_suites, of_others)
    if suite is not None:
        bench, questions = _eval_suite.read(suite, data, images, limit)
        loaded, processor = load(model, device, dtype)
        wanted_ways = _eval_suite.ways(loaded, method or [], config or [], wording, prompt or [])
        asked_of = _eval_suite.Asked(bench, questions, answers, batch_size, max_new_tokens, seed)
        record = {"model": model, "suite": suite, "data": data, "images": str(images), "questions": len(questions)}
        _eval_suite.run(loaded, processor, asked_of, wanted_ways, record, out, json)
        return
    if len(data) != 1:
        raise SteerError(f"--data is given {len(data)} times; only a --suite is read from several files")
    source, length = data[0], DEFAULT_LENGTH if max_new_tokens is None else max_new_tokens
    if (shots > 0) != (pool is not None):
        raise SteerError("--shots and --pool go together: how many demonstrations, and where they come from")
    saved = method or []
    what, reads = _reads(saved)
    held = load(model, device, dtype) if reads is None else None
    if held is not None:
        what, reads = model, _suits(held[0])
    record = {"model": model, "data": source, "seed": seed, "batch_size": batch_size}
    if reads == "labelled":
        from . import _eval_labelled

        refuse(what, reads, {"--shots": shots})
        wanted = Wanted(classes, read or [], skip_unreadable, limit, seed)
        found, names = wanted.of(source, "test")
        asked = _eval_labelled.Asked(found, names, base_new, batch_size)
        loaded, processor = held or load(model, device, dtype)
        rows = _eval_labelled.rows(loaded, processor, saved, template or [], asked)
        record |= {"pictures": len(found), "classes": names, "base_new": base_new}
        _eval_labelled.report(record, rows, asked, json)
        said = _eval_labelled.answers(rows, asked)
    else:
        from .._evaluating import Evaluation
        from ..fitting import track

        given = {"--classes": classes, "--read": read, "--skip-unreadable": skip_unreadable}
        refuse(what, "examples", {**given, "--template": template, "--base-new": base_new})
        queries = examples(source, "test", limit, seed)
        shown = examples(pool, "train", None, seed) if pool is not None else []
        run = Evaluation(*(held or load(model, device, dtype)), queries, batch_size, length)
        rows = [run.measure(way) for way in track(_ways(run.model, saved, shots, shown, seed), "evaluating")]
        record |= {"examples": len(queries), "shots": shots, "pool": pool, "max_new_tokens": length}
        _report(record, rows, json)
        said = _answers(run, rows)
    if out is not None:
        _write(out.absolute(), {**record, "rows": [row.to_dict() for row in rows], "answers": said})
        if not json:
            print(f"answers: {out.absolute()}")


def _reads(saved: list[str]) -> tuple[str, str | None]:
    """One of the saved methods, and what all of them are measured on; None where there are none.

    Raises:
        SteerError: some are measured on examples, others on labelled pictures.
    """
    from ..registry import load as load_method

    kinds = {path: load_method(path).reads for path in saved}
    for path, reads in kinds.items():
        if reads != kinds[saved[0]]:
            raise SteerError(
                f"{saved[0]} is measured on {kinds[saved[0]]}, {path} on {reads}; measure them one after the other"
            )
    return (f"method {saved[0]}", kinds[saved[0]]) if saved else ("", None)


def _suits(model: Any) -> str:
    """What a model is measured on by itself."""
    from ..session import map_of

    return "labelled" if map_of(model).streams is not None else "examples"


def _report(record: dict[str, Any], rows: list[Row], json: bool) -> None:
    if json:
        print_json({**record, "rows": [row.to_dict() for row in rows]})
        return
    columns = ("", "accuracy", "95 % interval", "begins right", "log-prob", "tokens / query", "ms / query")
    print_table(columns, [_cells(row) for row in rows])
    print(f"accuracy: on {record['examples']} examples, the whole answer, case aside; interval: Wilson's")
    print("begins right: whatever follows; like log-prob not measured for a method that answers in a way of its own")
    size = record["batch_size"]
    print(f"log-prob: of the right answer, mean; ms: batches of {size}, making inputs and writing included")


def _ways(model: Any, saved: list[str], shots: int, pool: list[Any], seed: int) -> list[Way]:
    """The model alone, once for each way of writing a prompt that a method uses; then the rest."""
    from .._evaluating import Way
    from ..demonstrations import Demonstrations
    from ..registry import load as load_method

    methods = {path: load_method(path, model) for path in saved}
    templates = dict.fromkeys([None, *(getattr(method, "template", None) for method in methods.values())])
    ways = [Way("zero-shot" + ("" if t is None else f", template {t!r}"), template=t) for t in templates]
    if shots:
        ways.append(Way(f"{shots}-shot in context", demonstrations=Demonstrations(tuple(pool), shots, seed=seed)))
    names = [method.name for method in methods.values()]
    for path, method in methods.items():
        name = method.name if names.count(method.name) == 1 else f"{method.name} ({path})"
        ways.append(Way(name, method, template=getattr(method, "template", None)))
    return ways


def _answers(run: Evaluation, rows: list[Row]) -> list[dict[str, Any]]:
    """By query: what was asked, what is right and what each way said."""
    return [
        {"question": q.question, "answer": q.answer, "said": {row.name: row.answers[i] for row in rows}}
        for i, q in enumerate(run.queries)
    ]


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    low, high = row.interval
    measured = number(row.begins, ".3f"), number(row.log_prob, ".3f"), number(row.tokens, ".0f"), number(row.ms, ".1f")
    return row.name, f"{row.accuracy:.3f}", f"{low:.3f} to {high:.3f}", *measured


def _write(path: Path, data: dict[str, Any]) -> None:
    from ..files import write_whole

    write_whole(path, (_json.dumps(data, indent=2) + "\n").encode())
