"""The plugin on docs/plugins.md is built, installed beside steer, and used, as it stands there."""

from __future__ import annotations

import subprocess
import sys

from tests.plugins.stranger import install_wheel, run

from .blocks import named_blocks


def test_the_first_plugin_is_short_and_works_as_written(tmp_path):
    files = named_blocks("docs/plugins.md")
    assert set(files) == {"pyproject.toml", "steer_dimmer.py", "use.py", "nudge.py"}
    written = [line for name in ("pyproject.toml", "steer_dimmer.py") for line in files[name].splitlines()]
    assert len([line for line in written if line.strip()]) <= 40
    source, target = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("pyproject.toml", "steer_dimmer.py"):
        (source / name).write_text(files[name])
    # Hatchling asks which files are the package when none has the project's name; steer_dimmer.py has it.
    install_wheel(source, target)
    done = run(files["use.py"], target)
    assert done.returncode == 0, done.stderr
    assert "dimmer: Scale at head_out" in done.stdout
    assert "Warning" not in done.stderr
    listed = run("import steer; print(steer.methods()['dimmer'].distribution)", target)
    assert listed.stdout.strip() == "steer-dimmer"


def test_the_method_fitted_by_gradient_runs_and_goes_on_as_written(tmp_path):
    script = tmp_path / "nudge.py"
    script.write_text(named_blocks("docs/plugins.md")["nudge.py"])
    said = set()
    for _ in range(2):
        done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    (only,) = said
    assert only.startswith("4 steps, loss on dev ")
    assert (tmp_path / "nudge-fit" / "fit.safetensors").exists()
