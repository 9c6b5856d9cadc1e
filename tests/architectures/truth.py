"""The recorded truth, packed: one line for all the numbered modules of one build."""

from __future__ import annotations

import re
from collections.abc import Mapping

Sizes = tuple[int, int, int, int]
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


def pack(sizes: Mapping[str, Sizes]) -> dict[str, dict[str, str]]:
    """Paths and sizes as {path with stars: {"heads kv_heads head_dim value_dim": "0-3 7"}}; the star is the last number
    that varies and the others stay in the path.
    """
    packed: dict[str, dict[str, list[int]]] = {}
    for path, found in sizes.items():
        numbers = list(_NUMBER.finditer(path))
        star, index = path, -1
        if numbers:
            last = numbers[-1] if len(numbers) == 1 else _longest(numbers, sizes, path)
            star, index = f"{path[: last.start()]}*{path[last.end() :]}", int(last.group())
        packed.setdefault(star, {}).setdefault(" ".join(map(str, found)), []).append(index)
    return {star: {key: _ranges(found) for key, found in entry.items()} for star, entry in packed.items()}


def unpack(packed: Mapping[str, Mapping[str, str]]) -> dict[str, Sizes]:
    """What `pack` was given."""
    sizes: dict[str, Sizes] = {}
    for star, entry in packed.items():
        for key, found in entry.items():
            heads, kv_heads, width, value = map(int, key.split())
            for index in _indices(found):
                sizes[star.replace("*", str(index))] = heads, kv_heads, width, value
    return sizes


def _longest(numbers: list[re.Match[str]], sizes: Mapping[str, Sizes], path: str) -> re.Match[str]:
    """The number with most values among paths that differ in nothing else."""

    def values(number: re.Match[str]) -> int:
        head, tail = path[: number.start()], path[number.end() :]
        return sum(1 for other in sizes if other.startswith(head) and other.endswith(tail))

    return max(numbers, key=values)


def _ranges(indices: list[int]) -> str:
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][-1] + 1:
            runs[-1][1:] = [index]
        else:
            runs.append([index])
    return " ".join("-".join(map(str, run)) for run in runs) if runs != [[-1]] else ""


def _indices(found: str) -> list[int]:
    indices: list[int] = []
    for run in found.split():
        first, _, last = run.partition("-")
        indices.extend(range(int(first), int(last or first) + 1))
    return indices or [-1]
