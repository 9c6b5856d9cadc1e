"""The kernels of `jsd` compiled for a GPU that is not there: every plan, beta and dtype, and nothing spills."""

from __future__ import annotations

import importlib

import pytest

from steer_kernels.fused import _jsd_plan, _jsd_terms, jsd_backward
from tests.kernels.compiles import compiles, job

file = importlib.import_module("steer_kernels.fused.jsd")
H100 = _jsd_plan.Machine(processors=132, l2=50 << 20)
OTHERS = {"labels": "*i64", "done": "*i32", "counters": "*i32"}
FP32 = {"out", "stats", "parts", "found", "grad"}
NUMBERS = {"scale", "unit", "bound", "beta", "factor", *(f"c{i}" for i in range(2, 9))}


def made(name, kernel, dtype, constants, warps):
    """One job: both matrices and their gradients in `dtype`, rows that are contiguous, all else an int."""
    names = kernel.arg_names
    constants = {key: value for key, value in {"step_a": 1, "step_b": 1, **constants}.items() if key in names}
    signature = {}
    for key in names:
        if key in constants:
            continue
        if key in {"first", "second", "into_a", "into_b"}:
            signature[key] = f"*{dtype}"
        else:
            signature[key] = OTHERS.get(key, "*fp32" if key in FP32 else "fp32" if key in NUMBERS else "i32")
    return job(name, kernel.__name__, signature, constants, warps)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_jsd_compiles(dtype):
    each = 8 if dtype == "bf16" else 4
    jobs = []
    for mode, save, kernels in (
        (_jsd_terms.HALF, False, (file._rows, file._split_scan, file._split_sums, file._group)),
        (_jsd_terms.MIXED, True, (file._rows, file._group)),
        (_jsd_terms.END, True, (file._rows,)),
    ):
        for kernel in kernels:
            plan = {file._rows: "row", file._group: "group"}.get(kernel, "split")
            how = file.settings(plan, 4096, 151936, 16 // each, H100, save)
            cut = {"LANES": how.lanes, "EACH": each, "PACKED": True, "LABELS": save, "SLICES": 64}
            cut |= {"HELD": how.span == how.lanes * each, "MODE": mode, "SAVE": save}
            jobs.append(made("jsd", kernel, dtype, cut, how.warps))
        cut = {"LANES": 2048 // each, "EACH": each, "PACKED": not save, "LABELS": save, "WANT_A": save, "WANT_B": True}
        jobs.append(made("jsd_backward", jsd_backward._gradients, dtype, {**cut, "MODE": mode}, 4))
    for result in compiles(*jobs):
        assert result["local"] == 0, result
