"""One of two processes that share models by tensor parallelism: `tp_run.py FOLDER OUT`.

FOLDER holds models by the names of `tp_models`; what is found goes into OUT, tensors and notes for each process.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.distributed import DistributedConfig

import steer
from steer import ops, sites, zoo
from tests.distributed.tp_cases import CASES, gradient, names_for, outcome, randn
from tests.distributed.tp_methods import METHODS
from tests.distributed.tp_models import MODELS, inputs, plan


def load(folder: Path, told: dict[str, str] | None = None) -> Any:
    """The model in fp64, spread by its own plan and what is told beside it."""
    spread = DistributedConfig(tp_plan=told or "auto", tp_size=2)
    more = {"dtype": torch.float64, "experts_implementation": "eager"}
    return AutoModelForImageTextToText.from_pretrained(folder, distributed_config=spread, **more).eval()


class Notebook:
    """What one process finds: tensors, and notes that are JSON."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.notes: dict[str, Any] = {}

    def take(self, name: str, found: dict[str, torch.Tensor], note: Any = None) -> None:
        self.tensors |= {f"{name}/{key}": tensor.contiguous().clone() for key, tensor in found.items()}
        self.notes[name] = note

    def refused(self, name: str, call: Callable[[], Any]) -> None:
        """Note the error that a call ends in; the next call begins once both processes are here."""
        try:
            call()
            self.notes[name] = "nothing was raised"
        except Exception as error:
            self.notes[name] = f"{type(error).__name__}: {error}"
        torch.distributed.barrier()


def every_case(book: Notebook, folder: Path) -> None:
    """Each case on each model, and that nothing is left of it."""
    for name in MODELS:
        model = load(folder / name, plan(name))
        model_map = steer.inspect(model)
        book.notes[f"{name}/map"] = model_map.to_dict()
        before = model(**inputs(name)).logits.detach()
        for case in names_for(name):
            book.take(f"{name}/{case}", *outcome(model, inputs(name), CASES[case](model_map)))
        if name != "mqa":  # transformers itself loses gradients of keys that are in every process
            book.take(f"{name}/gradient", gradient(model, inputs(name)))
        book.notes[f"{name}/restored"] = bool(torch.equal(before, model(**inputs(name)).logits))


def every_method(book: Notebook) -> None:
    """Each method on the shipped model."""
    model, processor = load(zoo.folder()), AutoProcessor.from_pretrained(zoo.folder())
    for name, run in METHODS.items():
        book.take(f"method {name}", run(model, processor))
    book.refused(
        "fit by gradient", lambda: steer.create("live").fit(model, processor, zoo.examples("plain:colour", n=4))
    )


def every_refusal(book: Notebook, folder: Path) -> None:
    """What cannot be, and says so before anything runs."""
    layers = "model.language_model.layers.*."
    change = steer.Intervention(sites.resid_out(), ops.Scale(0.5))

    def attach(name: str, told: dict[str, str] | None, item: steer.Intervention = change) -> Callable[[], Any]:
        def call() -> None:
            with torch.no_grad(), steer.attach(load(folder / name, told), item) as session:
                session.model(**inputs(name))

        return call

    keys = {f"{layers}self_attn.k_proj": "replicate", f"{layers}self_attn.v_proj": "replicate"}
    book.refused("keys in every process", attach("llama", keys))
    book.refused("a head cut in two", attach("mqa", None))
    book.refused("along the tokens", attach("llama", {f"{layers}input_layernorm": "sequence_parallel"}))
    book.refused(
        "scores in parts", attach("llama", {"lm_head": "colwise"}, steer.Intervention(sites.logits(), ops.Scale(0.5)))
    )
    bias = steer.Intervention(sites.key_bias(), ops.KeyBias(1.0, steer.positions.span(1, 3)))
    book.refused("a mask where keys are in every process", attach("mqa", plan("mqa"), bias))
    book.refused("eight heads over packed columns", attach("llama", {f"{layers}self_attn.q_proj": "packed_colwise"}))
    model = load(folder / "llama")
    book.refused("folding", lambda: steer.fold(model, steer.Intervention(sites.head_out(), ops.Add(randn(8, 6)))))
    shapes = {"training": randn(8, 6).requires_grad_(), "a vector for the heads of a process": randn(4, 6)}
    for name, vector in shapes.items():
        item = steer.Intervention(sites.head_out(), ops.Add(vector))
        book.refused(name, steer.attach(model, item).__enter__)
    none = steer.Intervention(sites.head_out(heads=8), ops.Scale(0.5))
    book.refused("no such head", steer.attach(model, none).__enter__)
    book.refused("recording for training", steer.record(model, sites.head_out(), grad=True).__enter__)


def main(folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    book = Notebook()
    every_case(book, folder)
    every_method(book)
    every_refusal(book, folder)
    rank = torch.distributed.get_rank()
    save_file(book.tensors, out / f"{rank}.safetensors")
    (out / f"{rank}.json").write_text(json.dumps(book.notes))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
