"""Whether Triton compiles a kernel for a GPU that is not there: from Python to the card's machine code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# The interpreter and the compiler cannot live in one process: a decorator decides when a kernel's file is imported.
PROGRAM = """
import importlib, json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
found = []
for job in json.loads(sys.stdin.read()):
    kernel = getattr(importlib.import_module("steer_kernels.fused." + job["file"]), job["kernel"])
    signature = {**job["signature"], **{name: "constexpr" for name in job["constants"]}}
    missing = [name for name in kernel.arg_names if name not in signature]
    assert not missing, f"{job['kernel']}: no type for {missing}"
    ordered = {name: signature[name] for name in kernel.arg_names}
    made = compile(
        ASTSource(fn=kernel, signature=ordered, constexprs=job["constants"]),
        target=GPUTarget("cuda", job["arch"], 32), options={"num_warps": job["warps"]},
    )
    found.append({"kernel": job["kernel"], "shared": made.metadata.shared, "ptx": len(made.asm["ptx"]),
                  "wide_loads": made.asm["ptx"].count("ld.global") and made.asm["ptx"].count(".v4"),
                  "local": made.asm["ptx"].count("st.local")})
print(json.dumps(found))
"""


def job(
    file: str, kernel: str, signature: Mapping[str, str], constants: Mapping[str, Any], warps: int = 4, arch: int = 90
) -> dict[str, Any]:
    """One kernel of `steer_kernels.fused.<file>`, with the types ("*bf16", "i32", "fp32") and constants of a launch."""
    return {
        "file": file,
        "kernel": kernel,
        "signature": dict(signature),
        "constants": dict(constants),
        "warps": warps,
        "arch": arch,
    }


def compiles(*jobs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compile them all in one process without the interpreter; what was made of each, or an AssertionError."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(jobs), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found
