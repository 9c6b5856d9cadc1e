"""The recorded truth, packed: one line for all the numbered modules of one build."""

from __future__ import annotations

import re
from collections.abc import Mapping

Sizes = tuple[int, int, int, int]
Received = tuple[Sizes, str | None]
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")


def pack(received: Mapping[str, Received]) -> dict[str, dict[str, str]]:
    """Per path with a star for its layer's number: {"heads kv_heads head_dim value_dim output_projection": "0-3 7"}."""
    packed: dict[str, dict[str, list[int]]] = {}
    for path, (sizes, out) in received.items():
        numbers = list(_NUMBER.finditer(path))
        star, index = path, -1
        if numbers:
            last = numbers[-1] if len(numbers) == 1 else _longest(numbers, received, path)
            star, index = f"{path[: last.start()]}*{path[last.end() :]}", int(last.group())
        key = " ".join([*map(str, sizes), _relative(path, out) if out else "-"])
        packed.setdefault(star, {}).setdefault(key, []).append(index)
    return {star: {key: _ranges(found) for key, found in entry.items()} for star, entry in packed.items()}


def unpack(packed: Mapping[str, Mapping[str, str]]) -> dict[str, Received]:
    """What `pack` was given."""
    received: dict[str, Received] = {}
    for star, entry in packed.items():
        for key, found in entry.items():
            *sizes, out = key.split()
            heads, kv_heads, width, value = map(int, sizes)
            for index in _indices(found):
                path = star.replace("*", str(index))
                received[path] = (heads, kv_heads, width, value), _absolute(path, out)
    return received


def _relative(path: str, out: str) -> str:
    """The output projection's path as seen from the attention module: `.o_proj`, or `/output.dense` beside it."""
    if out.startswith(f"{path}."):
        return out[len(path) :]
    outer = path.rpartition(".")[0]
    return "/" + out[len(outer) + 1 :] if out.startswith(f"{outer}.") else out


def _absolute(path: str, out: str) -> str | None:
    if out == "-":
        return None
    return path + out if out[0] == "." else f"{path.rpartition('.')[0]}.{out[1:]}" if out[0] == "/" else out


def _longest(numbers: list[re.Match[str]], received: Mapping[str, Received], path: str) -> re.Match[str]:
    """The number with most values among paths that differ in nothing else."""

    def values(number: re.Match[str]) -> int:
        head, tail = path[: number.start()], path[number.end() :]
        return sum(1 for other in received if other.startswith(head) and other.endswith(tail))

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
