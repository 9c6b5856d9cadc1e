"""What one way of answering did on every problem, small enough to write down: answers, not scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data import SIDE, Data
from ways import reading_at

from steer import suites
from steer.suites import Answer, Question
from steer.suites._chair import Facts
from steer.suites._objects import Objects
from steer.zoo import scene_words

Record = dict[str, Any]
YES_NO = ("pope", "blank", "attacked", "unattacked", "large")
CAPTIONS = ("captions", "attacked_captions")


def all_of(way: Any, data: Data) -> Record:
    """Every problem's answers."""
    found: Record = {name: yes_no(way, getattr(data, name)) for name in YES_NO if name != "large"}
    with reading_at(way.model, way.processor, SIDE):
        found["large"] = yes_no(way, data.large)
    found |= {name: captions(way, getattr(data, name)) for name in CAPTIONS}
    return {**found, "ordinary": ordinary(way, data)}


def on_dev(way: Any, data: Data, printed: bool) -> Record:
    """What a try is judged by."""
    asked = data.attacked if printed else data.pope
    found = yes_no(way, asked)
    right = [said == "1" for said in found["said"]]
    truth = [one.example.answer == "yes" for one in asked]
    share = sum(a == b for a, b in zip(right, truth, strict=True)) / len(asked)
    return {"accuracy": share, "ordinary": ordinary(way, data).count("1") / len(data.ordinary), **found}


def yes_no(way: Any, questions: Sequence[Question]) -> Record:
    """Whether yes was said, as bits, and its probabilities where they are known."""
    answers = way.yes_or_no(questions)
    said = "".join("1" if one.text.strip().lower().startswith("yes") else "0" for one in answers)
    known = all(one.p_yes is not None for one in answers)
    return {"said": said, "p": [round(one.p_yes, 4) for one in answers] if known else None}


def ordinary(way: Any, data: Data) -> str:
    """Which ordinary questions were answered right, as bits."""
    return "".join(
        "1" if answer.text.strip() == question.example.answer else "0"
        for question, answer in zip(data.ordinary, way.words(data.ordinary), strict=True)
    )


def captions(way: Any, questions: Sequence[Question]) -> Record:
    """For each caption, what CHAIR counts."""
    table = Objects([(name,) for name in scene_words.OBJECTS])
    told = [
        Question(one.key, one.group, one.example, one.cluster, Facts(frozenset(one.facts.names), table))
        for one in questions
    ]
    answers: list[Answer] = way.words(questions)
    columns = suites.chair.measure(told, answers)
    found = {
        name: "".join(map(str, columns[name].tolist())) for name in ("mentions", "hallucinated", "objects", "recalled")
    }
    printed = [
        "1" if one.facts.word in answer.text.split() else "0" for one, answer in zip(questions, answers, strict=True)
    ]
    return {**found, "printed": "".join(printed)}
