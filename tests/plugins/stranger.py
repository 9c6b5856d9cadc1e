"""Plugins of people we do not know, installed beside steer in a folder that only one test sees."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def build_wheel(source: Path) -> Path:
    """Build the package in `source`, with what this environment has."""
    wheels = source / "wheels"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def install_wheel(source: Path, target: Path) -> None:
    """Build the package in `source` and pip-install the wheel into `target`, without touching this environment."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(build_wheel(source))], check=True, capture_output=True)


def new_environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment that borrows steer and what it needs from this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = sysconfig.get_paths()["purelib"]
    # Not as a plain path: an editable installation is itself found through a .pth file.
    (packages / "borrowed.pth").write_text(f"import site; site.addsitedir({borrowed!r})\n")
    return folder / "bin" / "python"


def install_into(python: Path, wheel: Path) -> None:
    """pip-install a wheel into the environment of another interpreter, offline."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)


def install_module(target: Path, distribution: str, module: str, code: str) -> None:
    """What pip leaves behind for a one-module plugin: the module and its distribution's metadata."""
    target.mkdir(exist_ok=True)
    (target / f"{module}.py").write_text(code)
    info = target / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[steer]\n{module} = {module}\n")


def run(code: str, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process that sees the plugins in `target`."""
    search = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": search, **environment},
        cwd=target,
        capture_output=True,
        text=True,
        timeout=300,
    )


METHOD = """
from dataclasses import dataclass
from typing import ClassVar
import steer

@dataclass
class Mine(steer.Method):
    name: ClassVar[str] = {name!r}
    paper: ClassVar[str] = "https://example.org"
    summary: ClassVar[str] = "Does nothing."

    def interventions(self, model_map):
        return []

@steer.hookimpl
def steer_register_methods(registry):
    registry.add(Mine)
"""
