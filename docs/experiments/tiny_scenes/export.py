"""Write the shipped folder: weights as float16 (half the bytes), read back as float32, with the processor.

python docs/experiments/tiny_scenes/export.py --run runs/last/last --out steer/zoo/tiny_scenes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import build_processor
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder with the weights of the last phase")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    model = AutoModelForImageTextToText.from_pretrained(args.run, dtype=torch.float32)
    model.save_pretrained(args.out)  # its configuration says float32: arithmetic on a CPU is faster in it
    build_processor().save_pretrained(args.out)
    weights = args.out / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.3f} M parameters, {sum(f.stat().st_size for f in args.out.iterdir()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
