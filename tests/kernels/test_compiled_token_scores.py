"""The Triton kernels of token_scores compile for a Hopper card on a machine without one."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.kernels.compiles import compiles, job

fused = importlib.import_module("steer_kernels.fused.token_scores")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# query, key, mask, rows, query_slots, key_slots, real
STEPS = ("bhwd", "bhsd", "bhws", "bw", "bw", "bhs", "bhs")
NUMBERS = {
    **dict.fromkeys(("kv_heads", "groups", "window", "keys", "since"), "i32"),
    **dict.fromkeys(("c", "inverse", "floor"), "fp32"),
    **{x + y: "i32" for x, steps in zip("qkmrste", STEPS, strict=True) for y in steps},
}
# Triton makes constants of the integers of a launch that are 1, and rewrites the program for them.
UNIT = {"qd": 1, "kd": 1, "ms": 1, "rw": 1, "sw": 1, "ts": 1, "es": 1}


def jobs(kind, rows, width, mask="none", slots=True, reduce="sum", skip=False, ones=()):
    """Both kernels with the tile and warps that a launch of so many rows has."""
    tile = fused._settings(rows, width, DTYPES[kind], mask != "none")
    constants = {
        **UNIT, **dict.fromkeys(ones, 1), "WIDTH": width, "MASK": mask, "HAS_ROWS": slots, "HAS_SLOTS": slots,
        "HAS_REAL": slots, "HAS_SINCE": slots, "NEGATIVE": False, "WIDEN": kind == "fp32",
        **{name: size for name, size in tile.items() if name.startswith("BLOCK")},
    }  # fmt: skip
    types = {
        "query": f"*{kind}", "key": f"*{kind}", "mask": "*fp32" if mask == "added" else "*u8", "rows": "*u8",
        "query_slots": "*i64", "key_slots": "*i64", "real": "*u8", "high": "*fp32", "low": "*fp32", **NUMBERS,
    }  # fmt: skip
    types = {name: said for name, said in types.items() if name not in constants}
    first = {**constants, "LAST": skip, "SKIP": skip}
    second = {**constants, "REDUCE": reduce}
    return [
        job("token_scores", "stats_kernel", {**types, "each": "i32"}, first, tile["num_warps"]),
        job("token_scores", "mass_kernel", {**types, "out": "*fp32"}, second, tile["num_warps"]),
    ]


@pytest.mark.parametrize(
    "calls",
    [
        [("bf16", 448, 128), ("bf16", 1, 128, "none", True, "mean", False, ("kv_heads", "groups"))],
        [("bf16", 229376, 192, "none", True, "sum", True), ("fp16", 64, 96, "bool", False, "max")],
        [("bf16", 64, 64, "added", True, "mean"), ("fp32", 448, 128), ("fp32", 448, 128, "added", False, "max")],
    ],
    ids=["window and decoding", "whole prompt", "masks and fp32"],
)
def test_token_scores_compiles(calls):
    made = compiles(*(one for call in calls for one in jobs(*call)))
    assert [x["kernel"] for x in made] == ["stats_kernel", "mass_kernel"] * len(calls)
    # 227 KiB is what one program may have; two should stand beside each other
    assert all(x["shared"] <= 113 * 1024 for x in made), made


def test_joining_the_shares_compiles():
    types = {**dict.fromkeys(("highs", "lows", "high", "low"), "*fp32"), "total": "i32", "shares": "i32", "c": "fp32"}
    (made,) = compiles(job("token_scores", "joined_kernel", types, {"BLOCK_R": 16, "BLOCK_P": 256}))
    assert made["local"] == 0
