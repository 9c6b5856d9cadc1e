"""The kernels of K3 and K4 compiled for a GPU that is not there: nothing spills, hot loads are wide."""

from __future__ import annotations

import pytest

from steer_kernels.fused import head_shift, head_shift_backward, query_shift, query_shift_backward
from tests.kernels.compiles import compiles, job

IN_MODEL_DTYPE = {"o", "q", "y", "grad", "dq", "dx", "cos", "sin"}
OTHERS = {"rows": "*u8", "heads": "*i64", "slots": "*i64", "scale": "fp32", "factor": "fp32"}
FP32 = {"w", "b", "v", "lse", "gate", "u_q", "u_k", "dlse", "dw", "db", "dv", "du_q", "du_k", "dgate"}


def made(file, kernel, dtype, absent, constants):
    """One job: pointers in `dtype` or fp32, whatever is `absent` None, all else an int."""
    names = getattr(file, kernel).arg_names
    warps = constants["num_warps"]
    constants = {name: value for name, value in constants.items() if name in names}
    constants |= {name: None for name in absent if name in names}
    signature = {}
    for name in names:
        if name in IN_MODEL_DTYPE:
            signature[name] = f"*{dtype}"
        elif name not in constants:
            signature[name] = OTHERS.get(name, "*fp32" if name in FP32 else "i32")
    signature = {name: kind for name, kind in signature.items() if name not in constants}
    return job(file.__name__.rpartition(".")[2], kernel, signature, constants, warps)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_head_shift_compiles(dtype):
    jobs = []
    plain = (80, ("lse", "rows", "heads", "slots"))
    for dim, absent in ((128, ()), plain, (256, ("heads", "slots"))) if dtype == "bf16" else ((128, ()), plain):
        wide = 1 << (dim - 1).bit_length()
        for file, kernel in (
            (head_shift, "head_shift_kernel"),
            (head_shift_backward, "head_shift_backward_kernel"),
        ):
            constants = {"LAYER_NORM": dim != 80, "SLOTS": 32, **file._settings(4096, wide, wide)}
            jobs.append(made(file, kernel, dtype, absent, constants))
    for result in compiles(*jobs):
        assert result["local"] == 0, result


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_query_shift_compiles(dtype):
    jobs = []
    plain = (80, ("w", "b", "lse", "rows", "dw", "db", "cos", "sin"))
    turned = (128, ("gate",)), (256, ("gate",))
    straight = (128, ("gate", "cos", "sin")), (256, ("gate", "cos", "sin"))
    for dim, absent in (*turned, *straight, plain) if dtype == "bf16" else (plain,):
        wide = 1 << (dim - 1).bit_length()
        numbers = {"LAYER_NORM": dim != 80, "PRECISION": "tf32" if dtype == "bf16" else "tf32x3"}
        split = dtype == "bf16" and "cos" in absent
        for file, kernel, settings in (
            (query_shift, "query_shift_kernel", query_shift._settings(4096, wide, 8, split, dtype == "fp32")),
            (query_shift_backward, "query_shift_backward_kernel", query_shift_backward._settings(wide)),
        ):
            jobs.append(made(file, kernel, dtype, absent, {**numbers, **settings}))
    for result in compiles(*jobs):
        assert result["local"] == 0, result
