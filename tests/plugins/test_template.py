"""A plugin made by `steer new-plugin` is built, installed into a new environment and tested there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

from steer.cli import new_plugin

from .stranger import build_wheel, install_into, new_environment


def test_a_new_plugin_is_built_installed_and_tested_in_an_environment_of_its_own(tmp_path):
    source, away = tmp_path / "steer-brand-new", tmp_path / "away"
    new_plugin.command("brand_new", out=source)
    python = new_environment(tmp_path / "environment")
    install_into(python, build_wheel(source))
    # Away from the source: what is tested is the wheel.
    shutil.copytree(source / "tests", away)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python, *arguments],
            cwd=away,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    assert "13 passed" in said
    assert "skipped" not in said
    (listed,) = (one for one in json.loads(run("-m", "steer", "methods", "--json")) if one["name"] == "brand_new")
    assert (listed["distribution"], listed["version"]) == ("steer-brand-new", "0.1.0")
    assert listed["class"] == "steer_brand_new.method.BrandNew"
    where = run("-c", "import steer_brand_new as b; print(b.__file__)")
    assert where.startswith(str(tmp_path / "environment"))
