"""What the wheel and the sdist hold, and that they can be used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
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
def clone(tmp_path_factory) -> Path:
    """The tree as a clean clone has it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("clone")
    for path in git_files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    return folder


def build(tree: Path, out: Path) -> Path:
    """A folder with an sdist made from a tree, and a wheel made from that sdist, as a release is."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def built(clone, tmp_path_factory) -> Path:
    return build(clone, tmp_path_factory.mktemp("dist"))


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


def test_a_build_elsewhere_and_at_another_time_is_the_same_to_the_bit(clone, built, tmp_path, monkeypatch):
    """Wheel and sdist, from another folder, with files of another age, under another clock and mask."""
    shutil.copytree(clone, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    for path in (tmp_path / "elsewhere").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    again = build(tmp_path / "elsewhere", tmp_path / "dist")
    names = sorted(path.name for path in built.iterdir())
    assert len(names) == 2
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (again / name).read_bytes() == (built / name).read_bytes(), f"{name} differs"


USE = """
import importlib.util, json, sys
import torch
import steer

assert steer.__file__.startswith(sys.prefix), steer.__file__
assert importlib.util.find_spec("plugins") is None and importlib.util.find_spec("kernels") is None
model, processor = steer.zoo.load("tiny-vlm")
tower = steer.inspect(model).tower()
shift = steer.Intervention(steer.sites.resid_out([0]), steer.ops.Add(torch.ones(tower.width)))
ids = torch.ones(1, 4, dtype=torch.long)
plain = model(input_ids=ids).logits
with steer.attach(model, shift, steer.create("head_scale", heads=[[1, 0]], factor=2.0)) as session:
    moved = model(input_ids=ids).logits
assert not torch.equal(moved, plain) and torch.equal(model(input_ids=ids).logits, plain)
for name in ("steer", "steer_prompts", "steer_vectors", "steer_attention", "steer_memory", "steer_kernels"):
    assert importlib.util.find_spec(name).origin.startswith(sys.prefix), name
print(json.dumps(sorted(steer.methods())))
"""


def test_the_wheel_works_in_a_new_environment(built, tmp_path):
    """Installed by pip from the file; of this environment only the dependencies can be seen, and not the clone."""
    new, (wheel,) = tmp_path / "new", built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(new)], check=True)
    python = new / "bin" / "python"
    install = ["--python", str(python), "install", "-q", "--no-index", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    (site,) = new.glob("lib/python*/site-packages")
    # A line with a folder does not read the .pth files in it: an editable install of steer stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*command: object) -> str:
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    methods = json.loads(run(python, "-c", USE))
    assert {"live", "coop", "pasta", "emloc"} <= set(methods)
    assert sorted(one["name"] for one in json.loads(run(new / "bin" / "steer", "methods", "--json"))) == methods
    (info,) = site.glob("steer_vlm-*.dist-info")
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


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {metadata('steer-vlm')['Version']}\n" in text
    assert "\nlicense: Apache-2.0\n" in text
