"""Write the shipped folder: weights as float16 (half the bytes), read back as float32, with the processor.

python docs/experiments/tiny_vlm/export.py --run runs/text/best --out steer/zoo/tiny_vlm
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from model import build_processor
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration, LlavaProcessor


def write_half(model: LlavaForConditionalGeneration, processor: LlavaProcessor, out: Path) -> None:
    """Write model and processor; the weights take two bytes each."""
    model.save_pretrained(out)
    processor.save_pretrained(out)
    weights = out / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    # the stored type is float16, yet arithmetic on a CPU is faster and padding is exact to 1e-4 in float32
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "float32", config["dtype"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder with the best checkpoint of stage 2")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    model = AutoModelForImageTextToText.from_pretrained(args.run, dtype=torch.float32)
    write_half(model, build_processor(), args.out)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.3f} M parameters, {sum(f.stat().st_size for f in args.out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
