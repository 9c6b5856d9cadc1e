"""What SECURITY.md says of the source: looked up in it, so that the sentence goes when it is no longer true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from steer.files import FILE_NAMES

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for part in ("steer", "plugins", "kernels") for path in (ROOT / part).rglob("*.py"))
# Whoever needs one of these says in SECURITY.md why, and names the file here.
NEVER = {
    "pickle": (), "cPickle": (), "dill": (), "cloudpickle": (), "joblib": (), "shelve": (), "marshal": (),
    "zipfile": (), "tarfile": (), "shutil.unpack_archive": (), "torch.load": (), "numpy.load": (), "np.load": (),
    "os.system": (), "os.popen": (), "yaml": (), "exec": (), "eval": ("steer/_inspect/wiring.py",),
    "trust_remote_code": (), "allow_pickle": (), "torch.hub": (), "urllib": (), "requests": (), "httpx": (),
    "socket": (),
}  # fmt: skip


def names(tree: ast.AST) -> Iterator[str]:
    """What is imported, called by a plain name, reached through a dotted one, or given as a keyword."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in (alias.name, alias.name.split(".")[0]))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
            yield node.value


FOUND = {path: set(names(ast.parse(path.read_text()))) for path in SOURCES}


@pytest.mark.parametrize("name", NEVER)
def test_nothing_of_ours_uses(name):
    users = {str(path.relative_to(ROOT)) for path, used in FOUND.items() if name in used}
    assert users == set(NEVER[name])


def test_the_search_sees_what_it_looks_for():
    seen = set(
        names(ast.parse("import pickle\nfrom torch import load\nf(trust_remote_code=True)\nnp.load(x)\neval('1')"))
    )
    assert {"pickle", "torch.load", "trust_remote_code", "np.load", "eval"} <= seen


def test_a_download_asks_for_the_files_of_a_method_and_no_others(monkeypatch, tmp_path):
    import huggingface_hub

    import steer

    asked = []

    def download(name, revision=None, allow_patterns=None):
        asked.append((name, revision, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(steer.errors.FileFormatError):
        steer.load("some/one", revision="abc")
    assert asked == [("some/one", "abc", list(FILE_NAMES))]


def test_security_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"tests/[\w/]+\.py(?:::\w+)?", text))
    assert len(named) > 8
    for one in named:
        path, _, function = one.partition("::")
        assert (ROOT / path).is_file(), one
        assert not function or f"def {function}(" in (ROOT / path).read_text(), one
    for function in re.findall(r"`(test_\w+)`", text):
        assert any(f"def {function}(" in path.read_text() for path in (ROOT / "tests/files").glob("*.py")), function
