"""What a session costs where one token is decoded, launched from Python and replayed as one CUDA graph.

    python docs/experiments/decode.py --out docs/results/decode-CARD.json       (a minute on a GPU)
    python docs/experiments/decode.py --page                                    (docs/results/decode.md)

A Llama of the size of a 1 B model (random weights, bf16) with a static cache decodes one token again and again. Each
session acts in every layer. Eager: the step as `generate` runs it. Graph: the same step captured with
`torch.cuda.graph`, Triton's kernels included, and replayed. Variants take turns in random order; figures are medians
over rounds, ratios are taken within a round. Before anything is timed, the replayed logits must equal the eager ones.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import steer
import steer_kernels
from steer import Intervention, gates, ops, sites

RESULTS = Path(__file__).parents[1] / "results"
SEED, PROMPT, SLOTS, ROUNDS, REPEATS = 0, 64, 256, 15, 10
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, RANK = 16, 2048, 32, 8, 64, 8
QUICK = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100}


def model_of(device: str, quick: bool) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 8192, "num_hidden_layers": LAYERS, "vocab_size": 128256}
    config = LlamaConfig(
        **{**sizes, **(QUICK if quick else {})},
        num_attention_heads=4 if quick else HEADS, num_key_value_heads=2 if quick else KV_HEADS, head_dim=HEAD_DIM,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    return model.eval().requires_grad_(False)


def sessions(model: LlamaForCausalLM) -> dict[str, list[Intervention]]:
    """Every kernel of a session, in every layer."""
    c = model.config
    layers, heads = c.num_hidden_layers, c.num_attention_heads
    small = lambda *shape: torch.randn(*shape) * 0.05  # noqa: E731
    gate = gates.Sigmoid(small(layers, heads, HEAD_DIM), small(layers, heads), layer_norm=True)
    low_rank = ops.LowRankQuery(small(layers, heads, HEAD_DIM, RANK), small(layers, heads, HEAD_DIM, RANK))
    return {
        "bare": [],
        "K1 shift": [Intervention(sites.resid_out(), ops.Add(small(layers, c.hidden_size)))],
        "K2 shift, norms kept": [
            Intervention(sites.resid_out(), ops.Add(small(layers, c.hidden_size), keep_norm=True))
        ],
        "K3 gated head shift": [Intervention(sites.head_out(), ops.Add(small(layers, heads, HEAD_DIM)), gate)],
        "K4 gated query shift": [Intervention(sites.head_q(), low_rank, gate)],
    }


class Step:
    """One decoded token after the same prompt, with a static cache."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model, device = model, model.device
        self.cache = StaticCache(config=model.config, max_cache_len=SLOTS)
        model(input_ids=torch.arange(PROMPT, device=device)[None] % 90 + 2, past_key_values=self.cache)
        self.token = torch.tensor([[5]], device=device)
        self.position = torch.tensor([[PROMPT]], device=device)
        # Slots up to this one are seen, the empty ones behind are not: no mask has to be made on the host.
        self.mask = torch.zeros(1, 1, 1, SLOTS, dtype=torch.bool, device=device)
        self.mask[..., : PROMPT + 1] = True

    def reset(self) -> None:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(PROMPT)

    def __call__(self) -> torch.Tensor:
        return self.model(
            input_ids=self.token, position_ids=self.position, attention_mask=self.mask, past_key_values=self.cache
        ).logits


@contextmanager
def by_hand(model: LlamaForCausalLM) -> Iterator[None]:
    """What K1 is where somebody writes the hooks themselves."""
    vectors = 0.05 * torch.randn(model.config.num_hidden_layers, model.config.hidden_size)
    vectors = vectors.to(model.device, model.dtype)
    handles = [
        layer.register_forward_hook(lambda m, a, out, v=v: out + v if isinstance(out, torch.Tensor) else (out[0] + v,))
        for layer, v in zip(model.model.layers, vectors, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Variant:
    """One way to change the model: its step from Python, and captured."""

    def __init__(self, name: str, model: LlamaForCausalLM, items: list[Intervention] | None, kernels: str) -> None:
        self.name, self.items, self.model, self.kernels = name, items, model, kernels
        self.row: dict[str, object] = {"session": name}
        self.graph: torch.cuda.CUDAGraph | None = None
        with self._changed("first"):
            self.step = Step(model)
            self.step.reset()
            want = self.step().float()
            if model.device.type == "cuda":
                self._capture(want)

    def _changed(self, measure: Literal["first", "none"]) -> AbstractContextManager[object]:
        if self.items is None:
            return by_hand(self.model)
        both = ExitStack()
        both.enter_context(steer_kernels.prefer(self.kernels))
        both.enter_context(steer.attach(self.model, *self.items, measure=measure))
        return both

    def _capture(self, want: torch.Tensor) -> None:
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.step()
                self.step()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                logits = self.step()
            self.step.reset()
            self.graph.replay()
            self.row["largest_difference"] = float((logits.float() - want).abs().max())
            torch.testing.assert_close(logits.float(), want, rtol=2e-2, atol=2e-2)
        except Exception as error:
            self.graph = None
            self.row["graph_error"] = f"{type(error).__name__}: {error}"[:300]

    def seconds(self, way: str) -> float:
        """A step's time; opening the session is not in it."""
        self.step.reset()
        if way == "graph":
            assert self.graph is not None
            return _seconds(self.graph.replay)
        with self._changed("none"):
            return _seconds(self.step)


def _seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(REPEATS):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / REPEATS


def measure(variants: list[Variant]) -> list[dict[str, object]]:
    """Medians over rounds, and quartiles of the ratios to the bare model within a round."""
    runs = [(v, way) for v in variants for way in ("eager", "graph") if way == "eager" or v.graph is not None]
    times: dict[tuple[str, str], list[float]] = {(v.name, way): [] for v, way in runs}
    shuffled = random.Random(SEED)
    for _ in range(ROUNDS):
        shuffled.shuffle(runs)
        for variant, way in runs:
            times[variant.name, way].append(variant.seconds(way))
    for variant, way in runs:
        mine, bare = times[variant.name, way], times.get(("bare", way))
        variant.row[f"{way}_ms"] = round(1e3 * statistics.median(mine), 4)
        if bare:
            ratios = [a / b for a, b in zip(mine, bare, strict=True)]
            variant.row[f"{way}_to_bare"] = [round(q, 4) for q in statistics.quantiles(ratios, n=4)]
    return [v.row for v in variants]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", action="store_true", help="write the page from the records; nothing runs")
    parser.add_argument("--quick", action="store_true", help="a toy model, for trying the script")
    options = parser.parse_args()
    if options.page:
        (RESULTS / "decode.md").write_text(
            page([json.loads(f.read_text()) for f in sorted(RESULTS.glob("decode-*.json"))])
        )
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model_of(device, options.quick)
    with torch.no_grad():
        variants = [Variant(name, model, items, "auto") for name, items in sessions(model).items()]
        variants += [Variant(f"{v.name}, in torch", model, v.items, "torch") for v in variants if v.items]
        rows = measure([*variants, Variant("K1 by hand-written hooks", model, None, "auto")])
    made = {
        "machine": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "steer": steer.__version__},
        "model": {"layers": model.config.num_hidden_layers, "width": model.config.hidden_size, "dtype": "bfloat16"},
        "prompt": PROMPT, "slots": SLOTS, "rounds": ROUNDS, "rows": rows,
    }  # fmt: skip
    text = json.dumps(made, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


def page(records: list[dict[str, Any]]) -> str:
    """The records as a page."""
    said = (
        "Written by `python docs/experiments/decode.py --page` from the records beside it. Each session acts in every "
        "layer. *Eager*: the step as `generate` runs it, launched from Python. *Graph*: the same step, the session's "
        "kernels included, captured in one CUDA graph over a static cache and replayed; before it is timed, its logits "
        "must equal the eager ones. Medians over rounds in which all take turns; ratios to the bare model within a "
        "round, with quartiles."
    )
    lines = ["# One decoded token under a session", "", *textwrap.wrap(said, 120)]
    for record in records:
        size, versions = record["model"], ", ".join(f"{k} {v}" for k, v in record["versions"].items())
        lines += ["", f"## {record['machine']}", ""]
        model = f"{size['layers']} layers of width {size['width']}, {size['dtype']}, random weights, batch 1"
        rounds = f"{record['prompt']} tokens before, {record['rounds']} rounds"
        lines += textwrap.wrap(f"{record['date']}; {versions}; {model}; {rounds}.", 120)
        lines += [
            "",
            "| session | eager ms | to bare | graph ms | to bare | largest difference of logits, graph to eager |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for row in record["rows"]:
            cells = [row["session"]]
            for way in ("eager", "graph"):
                low, middle, high = row.get(f"{way}_to_bare", [None] * 3)
                cells += [f"{row[f'{way}_ms']:.2f}", f"{middle:.3f} [{low:.3f}, {high:.3f}]"] if middle else ["", ""]
            cells.append(row.get("graph_error") or f"{row.get('largest_difference', '')}")
            lines.append("| " + " | ".join(cells) + " |")
        if "note" in record:
            lines += ["", *textwrap.wrap(record["note"], 120)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
