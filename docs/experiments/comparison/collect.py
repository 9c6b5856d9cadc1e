"""docs/results/comparison.json: what every library's script printed, each run by its own environment's Python.

    python collect.py nnsight=/some/venv/bin/python steer=python ...

A library that is not named keeps what is stored of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
STORED = HERE.parents[1] / "results" / "comparison.json"


def main(given: list[str]) -> None:
    found = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    for name, python in (one.split("=", 1) for one in given):
        script = HERE / f"run_{name}.py"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        made = subprocess.run(
            [python, str(script)], cwd=HERE, env=environment, check=True, capture_output=True, text=True
        )
        found[name] = json.loads(made.stdout.strip().splitlines()[-1])
        print(name, found[name]["version"])
    text = json.dumps(dict(sorted(found.items())), indent=1) + "\n"
    new = STORED.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(STORED)


if __name__ == "__main__":
    main(sys.argv[1:])
