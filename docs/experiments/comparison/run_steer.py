"""steer: one address for every model, `sites.head_out([layer], heads=[head])`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from models import HEAD, LAYER, Case, vector
from probes import BIAS, Boom, Library, pruned
from reporting import report

import steer
from steer import Intervention, ops, positions, sites


def zero_head(one: Case) -> torch.Tensor:
    edit = Intervention(sites.head_out([LAYER], heads=[HEAD]), ops.Scale(0.0))
    with steer.attach(one.model, edit):
        return one.logits()


def shift(**where: object) -> Intervention:
    return Intervention(sites.resid_out([0], **where), ops.Add(vector()))


def add_beams(one: Case) -> torch.Tensor:
    with steer.attach(one.model, shift()):
        return one.write(num_beams=3)


def add_generated(one: Case) -> torch.Tensor:
    with steer.attach(one.model, shift(positions=positions.generated())):
        return one.write()


def add_rows(one: Case) -> torch.Tensor:
    with steer.attach(one.model, shift(positions=positions.span(2, 5))):
        return one.write()


def add_padded(one: Case, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with steer.attach(one.model, shift(positions=positions.span(2, 5))):
        return one.logits(**batch)


def bias_scores(one: Case) -> torch.Tensor:
    edit = Intervention(sites.key_bias([LAYER], heads=[HEAD]), ops.KeyBias(BIAS, positions.span(1, 5)))
    with steer.attach(one.model, edit):
        return one.logits()


def fail_inside(one: Case) -> None:
    with steer.attach(one.model, shift()):
        one.logits()
        raise Boom


def save(one: Case, folder: Path) -> None:
    method = steer.create("head_shift")
    method.tensors = {"shift": torch.zeros(2, 4, 8)}
    method.save_pretrained(folder)


def knorm(one: Case, write) -> None:
    with steer.attach(one.model, steer.create("knorm", keep=0.5)):
        write()


def ada_kv(one: Case, write) -> None:
    with steer.attach(one.model, steer.create("ada_kv", keep=0.5)):
        write()


LIBRARY = Library(
    "steer-vlm",
    "LLaVA",
    zero_head,
    add_beams,
    add_generated,
    add_rows,
    add_padded,
    bias_scores,
    fail_inside,
    save,
)

if __name__ == "__main__":
    report(LIBRARY, prune=partial(pruned, knorm), prune_heads=partial(pruned, ada_kv))
