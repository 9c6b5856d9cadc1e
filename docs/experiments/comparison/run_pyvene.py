"""pyvene: a component, named by its path or, in models of its list, by a word, and a function that changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyvene as pv
import torch
from models import GREEDY, LAYER, Case, case, vector, without_head
from probes import ROWS, TOLERANCE, Boom, Found, Library, said
from reporting import report


def wrapped(one: Case, component: str, change: Any) -> pv.IntervenableModel:
    return pv.IntervenableModel({"component": component, "intervention": change}, model=one.model)


def run(model: pv.IntervenableModel, inputs: dict[str, Any], where: dict[str, Any] | None = None) -> torch.Tensor:
    with torch.no_grad():
        _, output = model(base=inputs, unit_locations=where)
    return output.logits if hasattr(output, "logits") else output.logits_per_image


def zero_head(one: Case) -> torch.Tensor:
    def change(base: torch.Tensor, source: Any) -> torch.Tensor:
        base = base.clone()
        base[..., one.span] = 0
        return base

    return run(wrapped(one, f"{one.layers_path}[{LAYER}].{one.out_path}.input", change), one.inputs)


def shifted(one: Case) -> pv.IntervenableModel:
    return wrapped(one, f"{one.layers_path}[0].output", lambda base, source: base + vector())


def written(one: Case, prompt: bool, where: dict[str, Any] | None = None, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        _, output = shifted(one).generate(
            one.inputs, unit_locations=where, intervene_on_prompt=prompt, **{**GREEDY, **more}
        )
    return output


def add_beams(one: Case) -> torch.Tensor:
    return written(one, True, num_beams=3)


def add_generated(one: Case) -> torch.Tensor:
    """The nearest that its `generate` offers is an intervention that leaves the prompt alone."""
    return written(one, False)


def add_rows(one: Case) -> torch.Tensor:
    return written(one, True, {"base": list(range(ROWS.start, ROWS.stop))})


def add_padded(one: Case, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The user counts the padding of each row."""
    starts = batch["attention_mask"].argmax(1).tolist()
    rows = [[start + 2, start + 3, start + 4] for start in starts]
    return run(shifted(one), {**one.inputs, **batch}, {"sources->base": (None, [rows])})


def fail_inside(one: Case) -> None:
    def change(base: torch.Tensor, source: Any) -> torch.Tensor:
        raise Boom

    run(wrapped(one, f"{one.layers_path}[0].output", change), one.inputs)


def save(one: Case, folder: Path) -> None:
    added = pv.AdditionIntervention(embed_dim=32, source_representation=vector())
    wrapped(one, f"{one.layers_path}[0].output", added).save(str(folder))


def llava_that_has_not_run() -> Found:
    """The head in a LLaVA before its first forward; does the model run afterwards?"""
    other = case("LLaVA")
    with without_head(other):
        truth = other.logits()
    one = case("LLaVA")
    apart = float((zero_head(one) - truth).abs().max())
    try:
        one.logits()
    except IndexError as error:
        return False, f"{apart:.1e} from the truth; then the model's own forward: {said(error)}"
    return apart <= TOLERANCE, f"{apart:.1e} from the truth"


if __name__ == "__main__":
    report(
        Library(
            "pyvene", "InternVL", zero_head, add_beams, add_generated, add_rows, add_padded, None, fail_inside, save
        ),
        llava_that_has_not_run=llava_that_has_not_run,
    )
