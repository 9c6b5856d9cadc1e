"""The most memory of a step of fitting and of a prediction, each in a process of its own: the high-water mark of what
is resident, less that of a process that does nothing but load.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTHING = "nothing"


def measure(layers: int | None = None, classes: int | None = None) -> dict[str, Any]:
    """By task: megabytes of both, and ours as a share of theirs."""
    from bench import A_STEP, ASK, SIZES

    base = _child(NOTHING, layers, classes)
    found = {}
    for name in SIZES:
        for task in (A_STEP, ASK):
            ours, theirs = (_child(f"{who}/{name}/{task}", layers, classes) - base for who in ("ours", "theirs"))
            found[f"{name}: {task}"] = {
                "ours": round(ours, 1),
                "theirs": round(theirs, 1),
                "share": round(ours / theirs, 3),
            }
    return {"loaded": round(base, 1), "tasks": found}


def _child(task: str, layers: int | None, classes: int | None) -> float:
    """MB that a process of its own takes for a task."""
    given = json.dumps({"task": task, "layers": layers, "classes": classes})
    out = subprocess.run([sys.executable, __file__, given], check=True, capture_output=True, text=True).stdout
    return float(out.split()[-1])


def _run(task: str, layers: int | None, classes: int | None) -> None:
    import torch

    from bench import A_STEP, ASKED, LAYERS, Bench
    from bench import CLASSES as EVERY

    torch.set_num_threads(1)
    bench = Bench(layers or LAYERS, classes or EVERY)
    if task == NOTHING:
        return
    who, name, what = task.split("/")
    if what == A_STEP:
        bench.ours(name, 1) if who == "ours" else bench.theirs(name, 1)
        return
    method = bench.ours_unfitted(name)
    if who == "ours":
        method.predict(bench.pictures[: ASKED[name]])
    else:
        bench.asked(name, bench.learned(method), ASKED[name])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    _run(**json.loads(sys.argv[1]))
    # not ru_maxrss: it goes on from the parent's, in whose place the child was started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 1024)
