"""What was promised of the kernels before anything was timed, and how it is read off the rows.

The figure of a target is the worst of all rows that it counts: those marked large, which `cases/` marks before a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steer_kernels.bench.rows import NEW, Row

Read = Callable[[Sequence[Row]], tuple[float, str] | None]


@dataclass(frozen=True)
class Target:
    """A promise.

    Attributes:
        text: the promise in words.
        bound: what the figure must reach.
        least: whether it must be at least the bound, or at most.
        read: the figure and the row that it is of, or None where it was not measured.
    """

    text: str
    bound: float
    least: bool
    read: Read

    def met(self, value: float) -> bool:
        """Whether a figure keeps the promise."""
        return value >= self.bound if self.least else value <= self.bound


def worst(field: str, kernel: str, direction: str = "forward", memory: str = "") -> Read:
    """The lowest value of a field among the large rows of a kernel."""

    def read(rows: Sequence[Row]) -> tuple[float, str] | None:
        found = [row for row in rows if (row.kernel, row.direction, row.memory) == (kernel, direction, memory)]
        values = [(getattr(row, field), name(row)) for row in found if row.large and getattr(row, field) is not None]
        return min(values) if values else None

    return read


def memory_against(kernel: str, direction: str, other: str) -> Read:
    """Our peak memory as a share of another's, at the worst."""

    def read(rows: Sequence[Row]) -> tuple[float, str] | None:
        values = [
            (row.peak_ours_mb / theirs, name(row))
            for row in rows
            if row.kernel == kernel and row.direction == direction and row.large and row.peak_ours_mb is not None
            if (theirs := getattr(row, f"peak_{other}_mb"))
        ]
        return max(values) if values else None

    return read


def growth(kernel: str, letter: str, small: int, big: int, **same: object) -> Read:
    """Our peak memory at a big size as a multiple of that at a small one, all else alike."""

    def read(rows: Sequence[Row]) -> tuple[float, str] | None:
        peaks = {}
        for row in rows:
            alike = all(row.size.get(k) == v or getattr(row, k, None) == v for k, v in same.items())
            if row.kernel == kernel and row.direction == "forward" and alike and row.peak_ours_mb is not None:
                peaks[row.size[letter]] = row.peak_ours_mb
        if small not in peaks or big not in peaks:
            return None
        return peaks[big] / peaks[small], f"{letter} = {small:,} to {big:,}: {peaks[small]:g} to {peaks[big]:g} MB"

    return read


def name(row: Row) -> str:
    """Form, sizes and dtype of a row."""
    return f"{row.form}, {row.sizes}, {row.dtype}"


def gpu() -> list[Target]:
    """On a GPU of the H200 class."""
    found = [
        Target(f"`{kernel}`: at least 0.85 of copy bandwidth", 0.85, True, worst("of_copy", kernel))
        for kernel in ("shift", "head_shift", "query_shift", "jsd", "compact")
    ]
    for kernel in ("head_shift", "query_shift"):
        for direction in ("forward", "forward+backward"):
            for field, bound, what in (("x_eager", 3.0, "plain torch"), ("x_compiled", 1.2, "torch.compile")):
                text = f"`{kernel}`, {direction}: at least {bound:g} x {what}"
                found.append(Target(text, bound, True, worst(field, kernel, direction)))
    for direction in ("forward", "forward+backward"):
        text = f"`jsd`, {direction}: at least 1.1 x Liger-Kernel"
        found.append(Target(text, 1.1, True, worst("x_liger", "jsd", direction)))
        text = f"`jsd`, {direction}: no more memory than Liger-Kernel (a share of it)"
        found.append(Target(text, 1.0, False, memory_against("jsd", direction, "liger")))
    text = "`token_scores`: at least 5 x the eager attention matrix at S = 32k"
    found.append(Target(text, 5.0, True, worst("x_eager", "token_scores")))
    text = "`token_scores`: memory linear in S (4 times the keys, at most 4.2 times the memory)"
    found.append(Target(text, 4.2, False, growth("token_scores", "S", 32_768, 131_072, dtype="bf16", form="grouped")))
    return found


def cpu() -> list[Target]:
    """On any CPU, with the references in torch; speed both with freed memory kept and with new memory at each call."""
    found = []
    for memory, where in (("", ""), (NEW, f", in {NEW}")):
        found += [
            Target(f"`jsd`: at least 2 x the plain formula{where}", 2.0, True, worst("x_eager", "jsd", memory=memory)),
            Target(
                f"`token_scores`: at least 2 x the eager attention matrix{where}",
                2.0,
                True,
                worst("x_eager", "token_scores", memory=memory),
            ),
            Target(
                f"`compact`: within 1.3 x of copying as many bytes (0.77 of copy bandwidth){where}",
                1 / 1.3,
                True,
                worst("of_copy", "compact", memory=memory),
            ),
        ]
    alike = {"V": 32_000, "dtype": "fp32"}
    text = "`jsd`: constant extra memory (8 times the rows, at most 1.1 times the memory)"
    found.append(Target(text, 1.1, False, growth("jsd", "N", 64, 512, **alike)))
    text = "`token_scores`: memory linear in S (8 times the keys, at most 8.4 times the memory)"
    found.append(Target(text, 8.4, False, growth("token_scores", "S", 4096, 32_768, dtype="fp32", form="grouped")))
    return found
