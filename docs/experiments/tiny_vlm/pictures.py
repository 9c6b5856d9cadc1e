"""Render the held-out pictures that ship with the package: one contact sheet and its labels.

python docs/experiments/tiny_vlm/pictures.py --sprites sprites.npz --out steer/zoo/pictures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scenes import CANVAS, COLUMN, KIND, compose, load_bank, sample_labels

from steer.zoo._words import ATTRIBUTES, VALUES

SEED = 1001  # training never uses it
SPLITS = {"demo": 240, "dev": 240, "test": 720}  # pictures; demonstrations come from "demo", queries from the others
ACROSS = 40  # pictures in one row of the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    rng = np.random.default_rng(SEED)
    n = sum(SPLITS.values())
    y = sample_labels(n, rng, train=False)
    # every object about equally often within each split, so that the object score rests on all of them
    order = [rng.permutation(np.resize(rng.permutation(len(VALUES["object"])), size)) for size in SPLITS.values()]
    y[:, COLUMN["object"]] = np.concatenate(order)
    y[:, COLUMN["kind"]] = KIND[y[:, COLUMN["object"]]]

    sheet = compose(y, load_bank(args.sprites), rng).reshape(n // ACROSS, ACROSS, CANVAS, CANVAS, 3)
    sheet = sheet.transpose(0, 2, 1, 3, 4).reshape(n // ACROSS * CANVAS, ACROSS * CANVAS, 3)
    args.out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(args.out / "sheet.png", optimize=True)
    splits = [split for split, size in SPLITS.items() for _ in range(size)]
    words = [[values[v] for values, v in zip(VALUES.values(), row, strict=True)] for row in y]
    rows = [[split, *row] for split, row in zip(splits, words, strict=True)]
    index = {"side": CANVAS, "across": ACROSS, "seed": SEED, "columns": ["split", *ATTRIBUTES]}
    lines = ",\n".join(json.dumps(row) for row in rows)
    (args.out / "labels.json").write_text(json.dumps(index)[:-1] + f', "pictures": [\n{lines}\n]}}\n')
    print(f"{n} pictures, sheet.png {(args.out / 'sheet.png').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
