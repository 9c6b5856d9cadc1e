"""What the wheel and the sdist hold, and that they can be used."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PathDistribution, metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = {"steer", "steer_prompts", "steer_vectors", "steer_attention", "steer_memory", "steer_kernels"}


def git_files() -> set[str]:
    """The paths that are in version control, or would be: what a clean clone has."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {path for path in listed.stdout.splitlines() if (ROOT / path).exists()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with a wheel made from an sdist made from the tree, as a release is."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return out


@pytest.fixture(scope="module")
def wheel(built) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_packages_and_nothing_else(wheel, built):
    assert next(built.glob("*.whl")).name.startswith("steer_vlm-")
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


def test_the_wheel_holds_every_file_of_its_packages(wheel):
    held = set(wheel.namelist())
    for path in git_files():
        parts = path.split("/")
        inside = "/".join(parts[1:]) if parts[0] in ("plugins", "kernels") else path
        if inside.split("/")[0] in PACKAGES:
            assert inside in held, f"{path} is missing from the wheel"
    assert "steer/py.typed" in held


def test_the_wheel_names_its_licence_script_and_plugins(wheel):
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(entry_points).decode()
    assert "steer = steer.cli:main" in text
    for name in ("prompts", "vectors", "attention", "memory"):
        assert f"{name} = steer_{name}" in text
    (licence,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    assert "Apache License" in wheel.read(licence).decode()


def test_triton_is_asked_for_on_linux_only():
    (triton,) = (r for r in map(Requirement, metadata("steer-vlm").get_all("Requires-Dist")) if r.name == "triton")
    assert triton.marker.evaluate({"sys_platform": "linux"})
    for platform in ("darwin", "win32"):
        assert not triton.marker.evaluate({"sys_platform": platform})


def test_torch_and_transformers_are_open_upwards():
    required = {r.name: r for r in map(Requirement, metadata("steer-vlm").get_all("Requires-Dist"))}
    for name in ("torch", "transformers"):
        assert {clause.operator for clause in required[name].specifier} == {">="}


def test_the_sdist_holds_the_clone(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    missing = {path for path in git_files() if path not in held}
    assert missing <= {".gitignore", ".pre-commit-config.yaml"}


def test_the_wheel_works_away_from_the_source(wheel, tmp_path):
    """Unpacked into an empty folder, in an interpreter that sees its packages and not the clone around them."""
    wheel.extractall(tmp_path)
    code = (
        "import importlib.util as u, sys\n"
        f"clone = lambda p: p.startswith({str(ROOT)!r}) and not p.startswith(sys.prefix)\n"
        f"sys.path[:] = [{str(tmp_path)!r}] + [p for p in sys.path if not clone(p)]\n"
        "import steer\n"
        f"assert steer.__file__.startswith({str(tmp_path)!r}), steer.__file__\n"
        "assert u.find_spec('plugins') is None and u.find_spec('kernels') is None\n"
        "model, _ = steer.zoo.load('tiny-vlm')\n"
        "assert steer.inspect(model).towers\n"
        "steer.methods()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (info,) = tmp_path.glob("*.dist-info")
    assert PathDistribution(info).version == metadata("steer-vlm")["Version"]


def test_every_pin_satisfies_what_the_package_asks_for():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (clause,) = requirement.specifier
            assert clause.operator == "==", line
            pins[requirement.name.lower().replace("_", "-")] = clause.version
    for requirement in map(Requirement, metadata("steer-vlm").get_all("Requires-Dist")):
        name = requirement.name.lower().replace("_", "-")
        if name != "steer-vlm":
            assert name in pins, f"{name} has no pin"
            assert requirement.specifier.contains(pins[name])


def test_no_environment_leaks_into_the_tree():
    """The README's commands make .venv, dist and caches; git must not see them."""
    ignored = subprocess.run(
        ["git", "check-ignore", ".venv/", "dist/", "build/", "steer/__pycache__/"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if ignored.returncode == 128:
        pytest.skip("not a git checkout")
    assert len(ignored.stdout.splitlines()) == 4
