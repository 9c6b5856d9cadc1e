"""What the pages say besides figures."""

from __future__ import annotations

import textwrap
from typing import Any


def source(slug: str, about: dict[str, Any], command: str) -> list[str]:
    """Where the page comes from, and on which machine it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    cuda = about["type"] == "cuda"
    where = f"{about['cores']} cores" + (f" of {about['cpu']}" if cuda else f", threads: {about['threads']}")
    busy = f" (load {about['load']:g} when the run began)" if about.get("load") is not None and not cuda else ""
    return _filled(
        f"Written by `{command}` from [the record](kernels-{slug}.json) ([as a table](kernels-{slug}.csv)). "
        f"Measured on {about['date']}: {about['device']}, {where}{busy}, python {about['python']}, {versions}."
    )


def promised(cuda: bool) -> list[str]:
    """How the targets came about."""
    memory = (
        "That a CPU is timed both with freed memory kept and in new memory (see below) was decided after a first run, "
        "whose times depended on which of the two a variant happened to get."
    )
    text = "Set before anything was timed. A figure is the worst of the rows that count."
    return _filled(text if cuda else f"{text} {memory}")


def tests(about: dict[str, Any]) -> list[str]:
    """How the kernels' tests went in the same run."""
    found = about.get("tests")
    if not found:
        return []
    how = "compiled" if about["type"] == "cuda" else "in Triton's interpreter"
    wrong = found["failed"] + found["errors"]
    said = f"{found['passed']} passed, {wrong} failed, {found['skipped']} skipped"
    return ["", f"Tests of the kernels in the same run, {how}: {said}{' (**not all**)' if wrong else ''}."]


def how(about: dict[str, Any]) -> list[str]:
    """How it is measured."""
    cuda = about["type"] == "cuda"
    clock = (
        "the device's, between two events around a batch of calls that was queued behind a pause, so that launches are "
        "not what is timed (what the host takes is under One token)"
        if cuda
        else "the wall clock's around a batch of calls, with garbage collection off"
    )
    memory = (
        "the high-water mark of torch's CUDA allocator"
        if cuda
        else "what the profiler saw torch allocate and free, in order"
    )
    kept = (
        "Blocks that were freed stay with the process (`mallopt`), so that new pages are not what is timed: they can "
        "cost several times as much as the arithmetic, and not always the same. As malloc starts, large blocks come "
        "from the operating system at every call, which favours whoever needs least memory: rows in new memory are "
        "timed that way, before all others."
        if about.get("memory_kept")
        else ""
    )
    points = [
        "Every variant first gives its result on the same inputs. One that differs from ours by more than its dtype "
        "can hold is an error and has no time.",
        f"Then come {about['rounds']} rounds, or fewer where a call is slow, but 3. In each, ours, plain torch, "
        "torch.compile (one size for each use, `dynamic=False`), others' kernels, the copy and the sum that only "
        "reads have a turn, in random order. Ratios are taken within a round; figures are medians over rounds, and "
        "the record has the quartiles.",
        f"A time is {clock}.",
        "Calls take turns among equal sets of inputs, as many as hold four times the last cache "
        f"({about['cache_mb']:g} MB) and at most 32; results are kept till a batch ends. Small sizes stay in the cache "
        "none the less, beside a copy that does so too.",
        f"The copy is `clone()`: into a block of its own, as the kernels' results are. {kept}".rstrip(),
        f"Memory is {memory}, during one call.",
        "Plain torch is what a reader would write: `kernels/steer_kernels/bench/eager.py`.",
        "Liger-Kernel's JSD takes log-probabilities, so the two log-softmaxes before it are timed with it, in the "
        "dtype of the logits. kvpress is `SnapKVPress.score` without pooling, behind a projection that is the "
        "identity. flash-linear-attention (0.6) has no kernel that does one of these jobs. See `rivals.py` beside "
        "that file.",
        f"Inputs are random, from seed {about['seed']}.",
    ]
    return ["## How it is measured", "", *(line for point in points for line in _filled(point, "- "))]


def without(command: str, why: str) -> list[str]:
    """What the index says where there is no record of a GPU."""
    return _filled(
        f"The compiled figures are blank: {why}. On a machine with one, `{command}` runs the tests of the kernels "
        "compiled, then the benchmark, and writes the page of that card."
    )


def _filled(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        120,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


LEGEND = _filled(
    "GB is what must be moved: every input read once, every result written once. Of copy: our bandwidth as a share of "
    "that of a copy of as many bytes in the same rounds; of read: of a sum that only reads as many. The columns with "
    "x: how many times as long the other one took; above 1, ours is faster. MB: the most memory beyond the inputs, "
    "result included. Rows in bold are those that the targets count."
)
