"""nnsight: the user names modules by their paths in the model, and writes into their inputs and outputs."""

from __future__ import annotations

import operator

import nnsight
import torch
from models import GREEDY, LAYER, Case, vector
from probes import BIAS, ROWS, SPAN, Boom, Library
from reporting import report
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast


def envoy(one: Case, layer: int):
    """The model wrapped, and one of its text layers."""
    model = nnsight.NNsight(one.model)
    return model, operator.attrgetter(one.layers_path)(model)[layer]


def writer(one: Case):
    """The same, wrapped so that `generate` is traced step by step; this wrapper wants a tokenizer."""
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>")))
    words.pad_token = "<pad>"
    model = nnsight.TransformersModel(one.model, tokenizer=words)
    return model, operator.attrgetter(one.layers_path)(model)[0]


def logits(output: object) -> torch.Tensor:
    return output.logits if hasattr(output, "logits") else output.logits_per_image


def zero_head(one: Case) -> torch.Tensor:
    model, layer = envoy(one, LAYER)
    out = operator.attrgetter(one.out_path)(layer)
    columns = one.span
    with torch.no_grad(), model.trace(**one.inputs):
        out.input[..., columns] = 0
        found = model.output.save()
    return logits(found)


def add_beams(one: Case) -> torch.Tensor:
    model, layer = writer(one)
    v = vector()
    with torch.no_grad(), model.generate(**one.inputs, **{**GREEDY, "num_beams": 3}) as tracer:
        for _ in tracer.iter[:8]:
            layer.output += v
        written = tracer.result.save()
    return written  # noqa: RET504 - nothing may return out of nnsight's block


def add_generated(one: Case) -> torch.Tensor:
    model, layer = writer(one)
    v = vector()
    with torch.no_grad(), model.generate(**one.inputs, **GREEDY) as tracer:
        for _ in tracer.iter[1:8]:
            layer.output += v
        written = tracer.result.save()
    return written  # noqa: RET504 - nothing may return out of nnsight's block


def add_rows(one: Case) -> torch.Tensor:
    model, layer = writer(one)
    v = vector()
    with torch.no_grad(), model.generate(**one.inputs, **GREEDY) as tracer:
        for _ in tracer.iter[:1]:
            layer.output[:, ROWS] += v
        written = tracer.result.save()
    return written  # noqa: RET504 - nothing may return out of nnsight's block


def add_padded(one: Case, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The user counts the padding of each row."""
    model, layer = envoy(one, 0)
    v, starts = vector(), batch["attention_mask"].argmax(1).tolist()
    with torch.no_grad(), model.trace(**batch):
        for row, start in enumerate(starts):
            layer.output[row, start + 2 : start + 5] += v
        found = model.output.save()
    return logits(found)


def bias_scores(one: Case) -> torch.Tensor:
    """`.source` opens the layer's forward: the mask handed to the attention function is made anew."""
    model, layer = envoy(one, LAYER)
    rows = one.inputs["input_ids"].shape[1]
    mask = torch.full((rows, rows), float("-inf")).triu(1).expand(1, 4, rows, rows).clone()
    mask[:, 1, :, SPAN] += BIAS
    with torch.no_grad(), model.trace(**one.inputs):
        call = layer.self_attn.source.attention_interface_1
        args, kwargs = call.inputs
        args = list(args)
        args[4] = mask
        call.inputs = (tuple(args), kwargs)
        found = model.output.save()
    return logits(found)


def fail_inside(one: Case) -> None:
    model, layer = envoy(one, 0)
    v = vector()
    with torch.no_grad(), model.trace(**one.inputs):
        layer.output += v
        raise Boom


if __name__ == "__main__":
    report(
        Library("nnsight", "LLaVA", zero_head, add_beams, add_generated, add_rows, add_padded, bias_scores, fail_inside)
    )
