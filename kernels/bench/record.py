"""Everything that is said about the kernels' speed, in one command: their tests, the benchmark, the pages.

    python kernels/bench/record.py            on this machine, into docs/results
    python kernels/bench/record.py --quick    a few seconds, into a folder that is thrown away
    python kernels/bench/record.py --pages    no run: the pages again, from the records

On a machine with a GPU the tests run the compiled kernels, and the page is that card's.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "kernels")]

import torch  # noqa: E402
from _page import write  # noqa: E402

from steer_kernels.bench import Options, run  # noqa: E402
from steer_kernels.bench.machine import machine, slug  # noqa: E402
from steer_kernels.bench.rows import write_json  # noqa: E402
from steer_kernels.bench.table import show  # noqa: E402


def main() -> int:
    """Run; the exit code is 3 where a row is in error or a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, no tests")
    parser.add_argument("--pages", action="store_true", help="only write the pages again")
    parser.add_argument("--out", type=Path, help="the folder; docs/results by default")
    parser.add_argument("--no-tests", action="store_true", help="the benchmark only")
    parser.add_argument("--test-seconds", type=float, default=1800, help="the most that the tests may take")
    parser.add_argument("--limit", type=float, help="begin no further row of the benchmark after so many seconds")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--device", help="as torch names it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as thrown_away:
        out = given.out or (Path(thrown_away) if given.quick else ROOT / "docs/results")
        if given.pages:
            write(out)
            return 0
        out.mkdir(parents=True, exist_ok=True)
        return _record(out, given)


def _record(out: Path, given: argparse.Namespace) -> int:
    options = Options(quick=given.quick, limit=given.limit, threads=given.threads, device=given.device)
    name = f"kernels-{slug(machine(options.on))}"
    options = Options(
        quick=given.quick,
        limit=given.limit,
        threads=given.threads,
        device=given.device,
        json=out / f"{name}.json",
        csv=out / f"{name}.csv",
    )
    tests = None if given.quick or given.no_tests else _tests(given.test_seconds)
    about, rows = run(options)
    about["tests"] = tests
    write_json(out / f"{name}.json", about, rows)
    try:
        from steer_kernels.bench.plot import plot

        plot(out / f"{name}.png", about, rows)
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
    write(out)
    show(about, rows)
    failed = tests is not None and (tests["failed"] or tests["errors"])
    return 3 if failed or any(row.error for row in rows) else 0


def _tests(seconds: float) -> dict[str, int] | None:
    """How many of the kernels' tests passed, failed, were in error or skipped; None where they did not end."""
    environment = dict(os.environ)
    if torch.cuda.is_available():
        environment.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
            "tests/kernels",
            "tests/engine/test_kernels.py",
        ]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(min(8, os.cpu_count() or 1))]
        try:
            subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            print(f"the tests did not end in {seconds:g} s", file=sys.stderr)
            return None
        if not report.exists():
            return None
        suite = ElementTree.parse(report).getroot().find("testsuite")
    counts = (
        {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")} if suite is not None else {}
    )
    if not counts:
        return None
    bad = counts["failures"] + counts["errors"] + counts["skipped"]
    return {
        "passed": counts["tests"] - bad,
        "failed": counts["failures"],
        "errors": counts["errors"],
        "skipped": counts["skipped"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
