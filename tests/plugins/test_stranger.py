"""Plugins that are installed packages: one that works, one that breaks, two that want one name."""

from __future__ import annotations

import pytest

from .stranger import METHOD, install_module, run


def test_a_plugin_that_breaks_is_named_in_a_warning_and_the_others_work(tmp_path):
    install_module(tmp_path, "steer-broken", "steer_broken", "import module_that_does_not_exist")
    install_module(tmp_path, "steer-exits", "steer_exits", "raise SystemExit(7)")
    install_module(
        tmp_path,
        "steer-signature",
        "steer_signature",
        "import steer\n@steer.hookimpl\ndef steer_register_methods(wrong):\n    pass\n",
    )
    install_module(
        tmp_path,
        "steer-hook",
        "steer_hook",
        "import steer\n@steer.hookimpl\ndef steer_no_such_hook(model):\n    pass\n",
    )
    install_module(
        tmp_path,
        "steer-registers",
        "steer_registers",
        "import steer\n@steer.hookimpl\ndef steer_register_methods(registry):\n    registry.add(int)\n",
    )
    install_module(tmp_path, "steer-fine", "steer_fine", METHOD.format(name="fine"))
    quiet = run("import steer", tmp_path)
    assert (quiet.returncode, quiet.stderr) == (0, ""), "plugins were loaded by `import steer`"
    done = run("import steer; print(steer.create('fine')); print('fine' in steer.methods())", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True"
    for distribution, fact in {
        "steer-broken": "module_that_does_not_exist",
        "steer-exits": "7",
        "steer-signature": "wrong",
        "steer-hook": "steer_no_such_hook",
        "steer-registers": "int",
    }.items():
        warned = [line for line in done.stderr.splitlines() if f"'{distribution}'" in line and "RuntimeWarning" in line]
        assert warned, f"{distribution} was not named in a warning: {done.stderr}"
        assert fact in warned[0]
    assert "'steer-fine'" not in done.stderr


def test_two_plugins_with_one_method_name_are_an_error_that_names_both(tmp_path):
    install_module(tmp_path, "steer-first", "steer_first", METHOD.format(name="twin"))
    install_module(tmp_path, "steer-second", "steer_second", METHOD.format(name="twin"))
    done = run("import steer; steer.create('twin')", tmp_path)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert "PluginError" in error
    for fact in ("'twin'", "steer-first", "steer-second"):
        assert fact in error


@pytest.mark.parametrize(("value", "traced"), [("1", True), ("0", False), ("", False)])
def test_the_trace_shows_every_call_with_who_answered(tmp_path, value, traced):
    install_module(tmp_path, "steer-fine", "steer_fine", METHOD.format(name="fine"))
    done = run("import steer; steer.methods()", tmp_path, STEER_TRACE_PLUGINS=value)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("[steer plugins]")]
    assert bool(lines) is traced
    if traced:
        text = "\n".join(lines)
        assert "steer_register_methods(registry=<MethodRegistry>)" in text
        assert "-> steer-fine:steer_fine" in text
        assert "-> steer-vlm:vectors" in text, "the built-in plugins come by another road"
        assert "returned" in text
