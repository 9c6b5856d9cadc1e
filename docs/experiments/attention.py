"""What a bias on chosen keys (K5) costs: time and memory beside unsteered attention and beside an explicit mask.

    python docs/experiments/attention.py                    # a quarter of an hour on one CPU thread
    python docs/experiments/attention.py --device cuda      # the same on a GPU, in its sizes
    python docs/experiments/attention.py --page             # docs/results/attention.md from the records; nothing runs

Ways take turns: a round runs each of them, in random order, and a ratio is between two ways of one round. Figures go to
attention.json, by machine, after every group; another machine's stay as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "attention"))

import attention_page  # noqa: E402
from attention_layer import decode, prefill  # noqa: E402
from attention_model import model_decode, model_prefill  # noqa: E402
from attention_settings import DTYPE, LENGTHS, QUICK_LENGTHS, rounds  # noqa: E402
from attention_turns import measured  # noqa: E402

from steer_kernels.bench.machine import machine, slug  # noqa: E402

RESULTS = HERE.parent / "results"
GROUPS = {
    "decode": decode,
    "model decode": model_decode,
    "prefill": prefill,
    "model prefill": model_prefill,
    "prefill in bf16": prefill,  # on a GPU everything is
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS), help="measure these; keep others")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of attention.json and attention.md")
    parser.add_argument("--note", default="", help="a sentence for the page, on the circumstances of this run")
    parser.add_argument("--json", action="store_true", help="print the records of this run instead of the page")
    parser.add_argument("--page", action="store_true", help="write the page from the records; nothing runs")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two rounds, to see that it runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "attention.json"
    records: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not options.page:
        torch.set_num_threads(1)
        run(options, path, records)
    page = attention_page.write(records)
    (options.out / "attention.md").write_text(page)
    print(json.dumps(records, indent=1) if options.json else page)


def run(options: argparse.Namespace, path: Path, records: dict[str, Any]) -> None:
    """Measure every group and file it under this machine; what was there of other groups stays."""
    device = torch.device(options.device)
    about = machine(device)
    record = records.setdefault(slug(about), {"groups": {}})
    clock = "wall" if device.type == "cuda" else "processor"
    record |= {"machine": about, "note": options.note, "quick": options.quick, "clock": clock}
    with torch.no_grad():
        for name in options.groups:
            dtype = "bfloat16" if "bf16" in name else DTYPE[device.type]
            if "bf16" in name and DTYPE[device.type] == dtype:
                continue
            record["groups"][name] = []
            for length in QUICK_LENGTHS if options.quick else LENGTHS:
                print(f"{name}, {length} ...", file=sys.stderr, flush=True)
                case = GROUPS[name](device, dtype, length, options.quick)
                record["groups"][name].append(measured(case, 2 if options.quick else rounds(name, length)))
                del case
                save(path, records)


def save(path: Path, records: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(records, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    main()
