"""What a session costs: time, instructions, memory and import, beside hand-written hooks and other libraries.

    python docs/experiments/overhead.py            # on two quiet cores; writes docs/overhead.md, .json, .png
    python docs/experiments/overhead.py --parts times imports    # keeps the other parts as they are stored
    python docs/experiments/overhead.py --quick    # the toy only, a few rounds

Other libraries appear where they are installed: nnsight, repsteer and steering-vectors. Times are taken in rounds; a
round runs every variant once, in random order, and a ratio is between two variants of one round.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from _overhead_page import plot, write
from _overhead_variants import MORE, PEERS, VARIANTS, Case, build, largest_difference, peers, usable
from torch.utils._python_dispatch import TorchDispatchMode

import steer
from steer import gates, ops, positions, sites

SEED = 0
# Where arithmetic is nearly nothing a second thread only waits.
THREADS = {"llama-135m": 2, "tiny-vlm": 1, "toy": 1}
TOKENS = 32
ROUNDS = {"toy": 40, "tiny-vlm": 40, "llama-135m": 20}
STEPS = {"toy": 1000, "tiny-vlm": 400, "llama-135m": 80}
WARM, COUNTED_TOKENS, COUNTED_STEPS = 6, 9, 5
PROMPTS = (64, 2048)
IMPORTS = 8
OUT = Path(__file__).parents[1]

Times = dict[str, list[float]]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@contextlib.contextmanager
def quiet_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def generations(case: Case, variants: dict[str, Any], rounds: int, tokens: int, now: Clock) -> tuple[Times, Times]:
    """Seconds to write so many tokens inside an open session, and to open and close one, round by round."""
    order, seconds, around = list(variants), {n: [] for n in variants}, {n: [] for n in variants}
    shuffle = random.Random(SEED).shuffle
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            with quiet_gc():
                start = now()
                manager = variants[name](case)
                write = manager.__enter__()
                opened = now()
                write(tokens)
                written = now()
                manager.__exit__(None, None, None)
                closed = now()
            if turn:  # the first round warms up
                seconds[name].append(round(written - opened, 7))
                around[name].append(round(opened - start + closed - written, 7))
    return seconds, around


@contextlib.contextmanager
def one_step(case: Case) -> Iterator[Callable[[], None]]:
    """A function that decodes one token after the prompt, always the same one: the cache is cropped after it."""
    with torch.inference_mode():
        out = case.model(**case.inputs, use_cache=True)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)

        def step() -> None:
            case.model(input_ids=token, past_key_values=cache, use_cache=True)
            cache.crop(-1)

        yield step


def steps(case: Case, variants: dict[str, Any], repeats: int, now: Clock) -> Times:
    """Seconds of one decoded token; the variants of a round are a few hundredths of a second apart."""
    order, seconds = list(variants), {n: [] for n in variants}
    shuffle = random.Random(SEED + 1).shuffle
    with one_step(case) as step, quiet_gc():
        for turn in range(repeats + 3):
            shuffle(order)
            for name in order:
                with variants[name](case):
                    step()  # the first forward measures how far tensors move; it is in `generations`
                    start = now()
                    step()
                    if turn >= 3:
                        seconds[name].append(round(now() - start, 7))
    return seconds


def counted(case_name: str, names: list[str], what: str, amount: int) -> dict[str, float] | None:
    """Instructions per layer and token of each variant, from one process under callgrind; None without valgrind.

    `what` is "tokens" of one generation or single "steps"; the median of `amount` of them, after the warm-up.
    """
    if shutil.which("valgrind") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        child = ["--count", case_name, "--what", what, "--amount", str(amount), "--names", json.dumps(names)]
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--dump-before=getpgid"]
        command += [f"--callgrind-out-file={folder}/o", sys.executable, __file__, *child]
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            return None
        dumps = [Path(folder, f"o.{i + 1}").read_text() for i in range(len(list(Path(folder).glob("o.*"))))]
    totals = [int(re.search(r"^summary: (\d+)", text, re.M)[1]) for text in dumps]
    layers = int(re.search(r"^layers (\d+)", done.stdout, re.M)[1])
    each = len(totals) // len(names)
    # A variant's first count is what lay between it and the one before, and then the prompt's.
    rows = [totals[i * each + 1 : (i + 1) * each] for i in range(len(names))]
    return {name: statistics.median(row[-amount:]) / layers for name, row in zip(names, rows, strict=True)}


def mark(*ignored: Any) -> bool:
    """Where callgrind writes its counters down and starts anew; for `generate`, a criterion that never stops it."""
    os.getpgid(0)
    return False


def count(case_name: str, names: list[str], what: str, amount: int) -> None:
    """The child of `counted`."""
    torch.set_num_threads(1)
    case = build(case_name, SEED)
    made = {**VARIANTS, **MORE, **PEERS}
    subprocess.run(["callgrind_control", "-i", "on", str(os.getpid())], check=True, stdout=subprocess.DEVNULL)
    with contextlib.ExitStack() as stack:
        step = stack.enter_context(one_step(case)) if what == "steps" else None
        for name in names:
            with made[name](case) as write:
                if step is None:
                    case.more = {}
                    write(WARM)
                    case.more = {"stopping_criteria": [mark]}
                with quiet_gc():
                    mark()
                    if step is None:
                        write(amount + 1)
                    else:
                        for _ in range(WARM + amount):
                            step()
                            mark()
    print("layers", len(case.layers))


class Alive(TorchDispatchMode):
    """The most bytes of tensors made inside that were alive at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


def held() -> int:
    """Bytes of all tensors alive."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def kinds(case: Case) -> dict[str, list[steer.Intervention]]:
    """Interventions that need to know more and more of the sequence."""
    gate = gates.Sigmoid(case.heads, minus_lse=True)
    return {
        "residual shift": [steer.Intervention(sites.resid_out(), ops.Add(case.vectors))],
        "residual shift, generated tokens": [
            steer.Intervention(sites.resid_out(positions=positions.generated()), ops.Add(case.vectors))
        ],
        "head shift": [steer.Intervention(sites.head_out(), ops.Add(case.heads))],
        "gated head shift (K3)": [steer.Intervention(sites.head_out(), ops.Add(case.heads), gate)],
        "key bias at a span (K5)": [steer.Intervention(sites.key_bias(), ops.KeyBias(1.0, positions.span(0, 8)))],
    }


def memory(case: Case) -> dict[str, dict[str, list[int]]]:
    """For each kind of intervention: bytes kept between forwards, and the peak inside one, at each prompt length."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, items in {"bare": [], **kinds(case)}.items():
        row: dict[str, list[int]] = {"kept": [], "peak": []}
        for length in PROMPTS:
            ids = torch.randint(2, 100, (1, length), generator=torch.Generator().manual_seed(SEED))
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.inference_mode(), steer.attach(case.model, *items, strict=False):
                before = held()
                with Alive() as alive:
                    case.model(**inputs, logits_to_keep=1)
                row["kept"].append(held() - before)
                row["peak"].append(alive.peak)
        found[name] = row
    return found


def imports(times: int) -> Times:
    """Seconds that a new process takes to import transformers, alone, with steer, and with all that a session needs."""
    session = "import transformers, torch, steer; from transformers import LlamaForCausalLM; "
    code = {
        "import transformers": "import transformers",
        "import transformers, steer": "import transformers, steer",
        "transformers with a model class": session,
        "the same and steer.attach": session + "steer.attach, steer.Intervention, steer.ops.Add",
    }
    seconds: Times = {name: [] for name in code}
    for turn in range(times + 1):
        for name, text in code.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", text], check=True)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_times(names: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Every model's generations and steps."""
    now, found = CLOCKS[given.clock], {}
    for name in names:
        print(f"times of {name} ...", file=sys.stderr, flush=True)
        torch.set_num_threads(given.threads or THREADS[name])
        case = build(name, SEED)
        variants, failed = usable(case, given.tokens, more=name == "toy")
        gc.collect()
        gc.freeze()  # what is loaded by now need not be looked through before every measurement
        rounds = 2 if given.quick else given.rounds or ROUNDS[name]
        seconds, around = generations(case, variants, rounds, given.tokens, now)
        # A peer's own `generate` wraps the model; a single step of it would not be what its users run.
        stepped = {n: v for n, v in variants.items() if n not in ("nnsight", "repsteer")}
        repeats = 4 if given.quick else STEPS[name] * rounds // ROUNDS[name] + 2
        found[name] = {
            "layers": len(case.layers),
            "rounds": rounds,
            "threads": torch.get_num_threads(),
            "prompt": case.inputs["input_ids"].shape[1],
            "largest_logit_difference": largest_difference(case),
            "failed": failed,
            "generation": seconds,
            "open_and_close": around,
            "step": steps(case, stepped, repeats, now),
        }
        gc.unfreeze()
    return found


def measure_instructions() -> dict[str, Any]:
    print("instructions ...", file=sys.stderr, flush=True)
    toy = [*VARIANTS, *MORE, *peers()]
    return {
        "toy": counted("toy", toy, "tokens", COUNTED_TOKENS),
        "llama-135m": counted("llama-135m-cut", list(VARIANTS), "steps", COUNTED_STEPS),
    }


def measure(given: argparse.Namespace, found: dict[str, Any]) -> None:
    """Fill in the parts asked for; what else is in `found` stays."""
    found |= {"quick": given.quick, "tokens": given.tokens, "note": given.note, "when": time.strftime("%Y-%m-%d")}
    found["versions"] = {"python": platform.python_version(), "steer": steer.__version__}
    found["versions"] |= {n: version(n) for n in ("torch", "transformers")} | peers()
    if "times" in given.parts:
        found["clock"] = given.clock
        found["models"] = measure_times(["toy"] if given.quick else list(ROUNDS), given)
    if "memory" in given.parts:
        torch.set_num_threads(given.threads or 2)
        found["memory"] = memory(build("llama-135m-cut", SEED))
    if "imports" in given.parts:
        found["imports"] = imports(IMPORTS)
    if "instructions" in given.parts:
        found["instructions"] = measure_instructions()


PARTS = ("times", "memory", "imports", "instructions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="times of the toy only, a few rounds")
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=PARTS, help="measure these; keep the rest as stored"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder for overhead.md, .json and .png")
    parser.add_argument("--threads", type=int, help="instead of THREADS, on a machine that does other things too")
    parser.add_argument("--rounds", type=int, help="instead of ROUNDS")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu is steadier on such a machine")
    parser.add_argument("--note", default="", help="a sentence for the page, on the circumstances of this run")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    parser.add_argument("--amount", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--names", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.count:
        count(given.count, given.names, given.what, given.amount)
        return
    stored = given.out / "overhead.json"
    given.out.mkdir(parents=True, exist_ok=True)
    given.tokens = TOKENS
    if given.quick:
        given.parts, given.tokens = ["times"], 4
    found = json.loads(stored.read_text()) if stored.exists() and not given.quick else {}
    measure(given, found)
    stored.write_text(json.dumps(found))
    plot(found, given.out / "overhead.png")
    text = write(found, PROMPTS)
    (given.out / "overhead.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
