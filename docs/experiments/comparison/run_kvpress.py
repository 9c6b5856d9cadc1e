"""kvpress: presses are context managers around the prompt's forward; here Knorm, and AdaKV for budgets of heads."""

from __future__ import annotations

from functools import partial

import kvpress
import torch
from models import Case
from probes import Boom, Library, pruned
from reporting import report


def knorm(one: Case, write) -> None:
    with kvpress.KnormPress(compression_ratio=0.5)(one.model):
        write()


def ada_kv(one: Case, write) -> None:
    with kvpress.AdaKVPress(kvpress.KnormPress(compression_ratio=0.5))(one.model):
        write()


def fail_inside(one: Case) -> None:
    with kvpress.KnormPress(compression_ratio=0.5)(one.model), torch.no_grad():
        one.model(**one.inputs)
        raise Boom


if __name__ == "__main__":
    report(
        Library("kvpress", fail_inside=fail_inside),
        prune=partial(pruned, knorm),
        prune_heads=partial(pruned, ada_kv),
    )
