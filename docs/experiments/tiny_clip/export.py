"""Write the shipped folder: weights as float16 (half the bytes), read back as float32, with the processor.

python docs/experiments/tiny_clip/export.py --bank sprites.npz --run runs/clip --out steer/zoo/tiny_clip
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from model import build_model, build_processor
from safetensors.torch import load_file, save_file
from train import Batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, required=True, help="the sprite bank: its names are the vocabulary")
    parser.add_argument("--run", type=Path, required=True, help="folder with the checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    tokenizer = Batches(args.bank).tokenizer
    model = build_model(tokenizer)
    state = torch.load(args.run / "last.pt", weights_only=True)
    model.load_state_dict(state["model"])
    model.eval().save_pretrained(args.out)
    build_processor(tokenizer).save_pretrained(args.out)
    weights = args.out / "model.safetensors"
    half = args.out / "model.safetensors.part"
    save_file({k: v.half() for k, v in load_file(weights).items() if v.is_floating_point()}, half, {"format": "pt"})
    half.replace(weights)
    weights.chmod(0o644)
    count = sum(p.numel() for p in model.parameters())
    size = sum(f.stat().st_size for f in args.out.iterdir())
    print(f"step {state['step']}: {count / 1e6:.3f} M parameters, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
