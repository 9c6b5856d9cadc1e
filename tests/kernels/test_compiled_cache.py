"""`compact`, `js_select` and `key_bias` as machine code for a GPU that need not be there."""

from __future__ import annotations

import importlib

from tests.kernels.compiles import compiles, job


def listed(file, kernel, pointers, constants, warps=4):
    """A job in which every argument that is no pointer and no constant is a number."""
    names = getattr(importlib.import_module(f"steer_kernels.fused.{file}"), kernel).arg_names
    numbers = {name: "i32" for name in names if name not in pointers and name not in constants}
    return job(file, kernel, {**numbers, **pointers}, constants, warps)


def test_compact():
    jobs = []
    for bits, ragged, wide in (("i16", False, 128), ("i32", True, 64), ("i8", False, 256)):
        pointers = {"keys": f"*{bits}", "values": f"*{bits}", "index": "*i64", "place": "*i32"}
        pointers |= {"new_keys": f"*{bits}", "new_values": f"*{bits}"}
        constants = {"k3": 1, "v3": 1, "RAGGED": ragged, "BLOCK_N": 32, "BLOCK_D": wide, "BLOCK_V": 128}
        jobs.append(listed("compact", "compact_kernel", pointers, constants))
    for kind, weighed in (("bf16", True), ("fp32", False)):
        pointers = {"keys": f"*{kind}", "values": f"*{kind}", "index": "*i64", "order": "*i64", "bounds": "*i64"}
        pointers |= {"weight": "*fp32", "new_keys": f"*{kind}", "new_values": f"*{kind}"}
        constants = {"k3": 1, "v3": 1, "WEIGHED": weighed, "BLOCK_M": 8, "BLOCK_D": 64, "BLOCK_V": 128}
        jobs.append(listed("compact", "merge_kernel", pointers, constants))
    for made in compiles(*jobs):
        assert made["local"] == 0, made


def test_js_select():
    jobs = []
    for kind, budget, one, size, warps in (
        ("fp32", True, True, 16384, 16),
        ("fp32", False, True, 1024, 4),
        ("bf16", False, False, 8192, 16),
        ("fp32", True, False, 8192, 16),
    ):
        pointers = {"scores": f"*{kind}", "always": "*u8", "out": "*u8", "rho": "fp32", "rest": "fp32"}
        constants = {"s2": 1, "a2": 1, "BUDGET": budget, "HAS_ALWAYS": True, "ONE": one, "BLOCK": size}
        jobs.append(listed("js_select", "select_kernel", pointers, constants, warps))
    for made in compiles(*jobs):
        assert made["local"] == 0, made


def test_key_bias():
    jobs = []
    for kind, unit in (("bf16", 8), ("fp32", 8), ("fp16", 1)):
        pointers = dict.fromkeys(("query", "key", "value", "new_query", "new_key", "new_value"), f"*{kind}")
        pointers |= {"a": "*fp32", "b": "*fp32", "scaling": "fp32"}
        constants = {"q3": 1, "k3": 1, "v3": 1, "UNIT": unit, "VALUE_UNIT": unit}
        constants |= {"BLOCK_R": 32, "BLOCK_D": 64, "BLOCK_V": 128, "BLOCK_E": 8}
        jobs.append(listed("key_bias", "key_bias_kernel", pointers, constants))
    for made in compiles(*jobs):
        assert made["local"] == 0, made
