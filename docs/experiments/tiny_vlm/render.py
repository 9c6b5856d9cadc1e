"""Render the emoji of two icon sets into one sprite bank.

Get the drawings first (Apache-2.0 and MIT), and unpack them side by side:

    npm pack @iconify-json/noto@1.2.9 @iconify-json/fluent-emoji-flat@1.2.6
    for f in *.tgz; do mkdir -p ${f%.tgz}; tar xzf $f -C ${f%.tgz} --strip-components=1; done
    python docs/experiments/tiny_vlm/render.py --icons . --out sprites.npz
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from steer.zoo._words import OBJECTS

SETS = {"noto": "iconify-json-noto-*", "fluent": "iconify-json-fluent-emoji-flat-*"}
SIDES = {"small": (11, 12, 13), "big": (17, 18, 19)}  # pixels
BOX = 20  # pixels: every sprite is padded into a BOX x BOX square, centred


def draw(body: str, view: int, side: int) -> np.ndarray:
    """One icon as [BOX, BOX, 4] uint8 RGBA, the drawing `side` pixels wide in the middle."""
    box = f'viewBox="0 0 {view} {view}" width="{side}" height="{side}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{body}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    padded = np.zeros((BOX, BOX, 4), np.uint8)
    start = (BOX - side) // 2
    padded[start : start + side, start : start + side] = picture
    return padded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--icons", type=Path, required=True, help="folder that holds the two unpacked packages")
    parser.add_argument("--out", type=Path, required=True, help="sprite bank to write (.npz)")
    args = parser.parse_args()

    bank = np.zeros((len(OBJECTS), len(SETS), len(SIDES), 3, BOX, BOX, 4), np.uint8)
    for s, pattern in enumerate(SETS.values()):
        data = json.loads((next(args.icons.glob(pattern + "/icons.json"))).read_text())
        for o, (_, icon) in enumerate(OBJECTS.values()):
            icon = data.get("aliases", {}).get(icon, {}).get("parent", icon)
            body = data["icons"][icon]["body"]
            for z, sides in enumerate(SIDES.values()):
                for v, side in enumerate(sides):
                    bank[o, s, z, v] = draw(body, data["width"], side)
    np.savez_compressed(args.out, bank=bank)
    print(f"{args.out}: {bank.shape} sprites")


if __name__ == "__main__":
    main()
