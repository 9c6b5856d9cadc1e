"""Render the drawings: a bank of the training styles, and the sheets of the held-out styles that ship.

Get the drawings first (see docs/tiny-clip.md), unpack them side by side, then
python docs/experiments/tiny_clip/sprites.py --icons . --out sprites.npz --ship steer/zoo/emoji
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import resvg_py
from names import HELD_OUT, TRAINED, Icons, choose, words
from PIL import Image

SIDE = 48  # pixels
ACROSS = 32  # glyphs in one row of a shipped sheet


def draw(icons: Icons, icon: str) -> np.ndarray | None:
    """One icon as [SIDE, SIDE, 4] uint8 RGBA, or None where the set has none."""
    found = icons.body(icon)
    if found is None:
        return None
    body, view = found
    box = f'viewBox="0 0 {view} {view}" width="{SIDE}" height="{SIDE}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box}>{body}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    if picture.shape != (SIDE, SIDE, 4) or not picture[..., 3].any():
        raise ValueError(f"{icon} drew nothing, or not {SIDE} x {SIDE}: {picture.shape}")
    return picture


def write_bank(folder: Path, chosen: dict[str, list[str]], out: Path) -> None:
    """Save `bank` [styles, names, SIDE, SIDE, 4], `has` [styles, names], `names` and `kinds`."""
    flat = [(kind, icon) for kind, icons in chosen.items() for icon in icons]
    bank = np.zeros((len(TRAINED), len(flat), SIDE, SIDE, 4), np.uint8)
    has = np.zeros(bank.shape[:2], bool)
    for s, name in enumerate(TRAINED):
        icons = Icons(folder, name)
        for i, (_, icon) in enumerate(flat):
            picture = draw(icons, icon)
            if picture is not None:
                bank[s, i], has[s, i] = picture, True
    np.savez_compressed(
        out, bank=bank, has=has, names=np.array([words(i) for _, i in flat]), kinds=np.array([k for k, _ in flat])
    )
    print(f"{out}: {len(flat)} names; styles {dict(zip(TRAINED, has.sum(1).tolist(), strict=True))}")


def write_sheets(folder: Path, chosen: dict[str, list[str]], out: Path) -> None:
    """Save one sheet a held-out style, and which glyph is where."""
    out.mkdir(parents=True, exist_ok=True)
    index: dict = {"side": SIDE, "across": ACROSS, "styles": {}}
    for style, name in HELD_OUT.items():
        icons = Icons(folder, name)
        glyphs, where = [], {}
        for kind in [k for k in chosen if k != "digits"]:
            drawn = {words(i): draw(icons, i) for i in chosen[kind]}
            drawn = {k: v for k, v in sorted(drawn.items()) if v is not None}
            where[kind] = {k: len(glyphs) + i for i, k in enumerate(drawn)}
            glyphs += drawn.values()
        rows = -(-len(glyphs) // ACROSS)
        cells = np.zeros((rows * ACROSS, SIDE, SIDE, 4), np.uint8)
        cells[: len(glyphs)] = glyphs
        sheet = cells.reshape(rows, ACROSS, SIDE, SIDE, 4).transpose(0, 2, 1, 3, 4)
        path = out / f"{style}.png"
        Image.fromarray(sheet.reshape(rows * SIDE, ACROSS * SIDE, 4)).save(path, optimize=True)
        index["styles"][style] = {"sheet": path.name, "sets": where}
        print(f"{path}: {len(glyphs)} glyphs, {path.stat().st_size / 1e6:.2f} MB")
    (out / "labels.json").write_text(json.dumps(index, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--icons", type=Path, required=True, help="folder that holds the unpacked packages")
    parser.add_argument("--out", type=Path, required=True, help="bank of the training styles to write (.npz)")
    parser.add_argument("--ship", type=Path, help="folder to write the held-out sheets to")
    args = parser.parse_args()
    chosen = choose(args.icons)
    print({k: len(v) for k, v in chosen.items()})
    if args.ship:
        write_sheets(args.icons, chosen, args.ship)
    write_bank(args.icons, chosen, args.out)


if __name__ == "__main__":
    main()
