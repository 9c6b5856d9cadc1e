"""What a shell is given: a script that it reads, and names for what was begun, without noise and without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

import steer
from steer.cli import _complete, _known
from steer.cli._complete import offer

PYTHON = (sys.executable, "-c", "from steer.cli import main; main()")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_and_the_shell_can_read_it(steer_cli, shell, tmp_path):
    ran = steer_cli("--show-completion", shell)
    assert (ran.code, ran.err) == (0, "")
    assert "_STEER_COMPLETE=complete_" + shell in ran.out
    if shutil.which(shell):
        (tmp_path / "script").write_text(ran.out)
        assert subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True).returncode == 0


def test_an_unknown_shell_is_an_error_with_the_nearest(steer_cli):
    ran = steer_cli("--show-completion", "zhs")
    assert ran.code == 1
    assert "did you mean 'zsh'" in ran.err


@pytest.fixture
def completed(steer_cli, monkeypatch):
    """The names for a line whose last word was begun, as bash asks for them, in this process."""

    def complete(*words: str) -> list[str]:
        monkeypatch.setenv("_STEER_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("steer", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        ran = steer_cli()
        assert (ran.code, ran.err) == (0, "")
        return ran.out.split()

    return complete


@pytest.mark.parametrize(
    "words, names",
    [
        (("gen",), ["generate"]),
        (("memory", "b"), ["build"]),
        (("generate", "--max"), ["--max-new-tokens"]),
        (("generate", "--model", "tiny-c"), ["tiny-clip"]),
        (("inspect", "tiny-s"), ["tiny-scenes"]),
        (("fit", "task"), ["task_vector"]),
        (("look", "--method", "image"), ["image_focus"]),
        (("fit", "icv", "--dtype", "b"), ["bfloat16"]),
        (("eval", "--device", "a"), ["auto"]),
        (("demo", "--task", "if-a"), ["if-animal"]),
        (("profile", "--measure", "ab"), ["ablation"]),
        (("look", "--attention", ""), ["self", "cross"]),
        (("generate", "--model", "no-such"), []),
    ],
)
def test_names_are_completed(completed, words, names):
    assert completed(*words) == names


def test_a_completion_never_raises_and_never_speaks(capsys):
    def broken():
        raise RuntimeError("no")

    def noisy():
        import warnings

        warnings.warn("a plugin does not load", stacklevel=1)
        return ["name"]

    assert offer(broken)("") == []
    assert offer(noisy)("n") == ["name"]
    assert capsys.readouterr() == ("", "")


def test_the_names_of_methods_are_kept_and_told_without_asking_the_plugins(steer_cli, monkeypatch, plugged):
    from tests.files.toy import ToyPlugin

    plugged(ToyPlugin())
    assert steer_cli("methods", "--json").code == 0
    kept = _known._file()
    monkeypatch.setattr("steer.registry.methods", lambda: pytest.fail("the plugins were asked"))
    found = list(_complete.methods())
    monkeypatch.undo()
    # Of installed plugins: one that a test registers is gone tomorrow.
    assert found == [name for name, info in steer.methods().items() if info.distribution == "steer-vlm"]
    for damage in ("", "[]", "{}", '{"plugins": [["another", "plugin", "2"]], "methods": ["old"]}'):
        kept.write_text(damage)
        assert list(_complete.methods()) == list(steer.methods())
        kept.write_text(damage)


def test_a_folder_that_cannot_be_written_keeps_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "icv" in list(_complete.methods())


def test_neither_help_nor_a_completion_imports_torch():
    """They are waited for."""
    line = {"_STEER_COMPLETE": "complete_bash", "COMP_WORDS": "steer generate --model t", "COMP_CWORD": "3"}
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); " + PYTHON[2]
    for words, env in ((["--help"], {}), ([], line)):
        done = subprocess.run([*PYTHON[:2], code, *words], capture_output=True, text=True, env={**os.environ, **env})
        assert done.stdout.split()[-1] == "False", done.stdout + done.stderr


def test_it_is_installed_into_the_users_settings(steer_cli, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = steer_cli("--install-completion", "bash")
    assert (ran.code, ran.err) == (0, "")
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert steer_cli("--show-completion", "bash").out.strip() in written
