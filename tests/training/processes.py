"""Programs run beside a test: alone, or two under `accelerate launch`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PATIENT = 240


def environment(**more: str) -> dict[str, str]:
    """One thread a process, the tests importable, and nothing of a launcher around this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_"))}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        kept.pop(name, None)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def start(arguments: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process that should succeed; whatever happens, it and its children are gone afterwards."""
    try:
        said, _ = process.communicate(timeout=PATIENT)
        assert process.returncode == 0, said
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """The process and all that it started: torch's launcher gives its workers sessions of their own."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(family, timeout=PATIENT)
    process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def launcher(number: int = 2, config: Path | None = None) -> list[str]:
    """Arguments of the interpreter that start so many processes together; the program's own come after them.

    Args:
        number: of processes.
        config: a file of accelerate's, for everything else.
    """
    start = ["-m", "accelerate.commands.launch", "--num_processes", str(number), "--num_machines", "1"]
    # `--cpu` would start one process alone: without mpirun this is how two share the CPUs.
    how = ["--multi_gpu"] if config is None else ["--config_file", str(config)]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    return [*start, *how, *plain]


def together(arguments: Callable[[int], list[str]], config: Path | None = None) -> None:
    """Run a program as two processes that share the work, and wait for it.

    Args:
        arguments: of the interpreter, for each attempt, from 0.
        config: as in `launcher`.
    """
    for attempt in range(3):  # between asking for a free port and taking it, another process may have it
        process = start([*launcher(config=config), *arguments(attempt)])
        try:
            finish(process)
            return
        except AssertionError as error:
            if "EADDRINUSE" not in str(error) or attempt == 2:
                raise
