"""`import steer` costs almost nothing, and works where optional things are missing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import steer

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_steer_adds_only_itself_to_transformers():
    code = "import transformers, sys; before = set(sys.modules); import steer; print(sorted(set(sys.modules) - before))"
    assert ast.literal_eval(python(code)) == ["steer"]


def test_import_steer_alone_brings_no_library():
    loaded = set(ast.literal_eval(python("import steer, sys; print(sorted(sys.modules))")))
    heavy = {"torch", "transformers", "numpy", "typer", "rich", "matplotlib", "pluggy", "triton", "PIL", "steer.cli"}
    assert not loaded & heavy


def test_the_library_never_loads_the_command_line():
    loaded = ast.literal_eval(python("import steer, sys; steer.methods(); print(sorted(sys.modules))"))
    assert not {"steer.cli", "typer", "matplotlib"} & set(loaded)


def test_every_public_name_is_there_without_importing_another_first():
    """Each in a process of its own; forked after the slow imports, which are not what is asked."""
    python(
        "import os, torch, transformers, steer\n"
        "for name in steer.__all__:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        getattr(steer, name)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0, name\n"
    )


def test_dir_lists_every_public_name():
    assert set(steer.__all__) <= set(dir(steer))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = steer.no_such_name


def test_without_triton_steer_works_on_the_torch_kernels():
    python(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'triton' or name.startswith('triton.'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import steer, torch\n"
        "model, _ = steer.zoo.load('tiny-vlm')\n"
        "item = steer.Intervention(steer.sites.resid_out([0]), steer.ops.Add(torch.ones(192), keep_norm=True))\n"
        "ids = torch.ones(1, 4, dtype=torch.long)\n"
        "plain = model(input_ids=ids).logits\n"
        "with steer.attach(model, item):\n"
        "    assert not torch.equal(model(input_ids=ids).logits, plain)\n"
        "assert 'triton' not in sys.modules\n"
    )


SIDES = {
    "kernels/steer_kernels": {
        "steer",
        "transformers",
        "steer_prompts",
        "steer_vectors",
        "steer_attention",
        "steer_memory",
    },
    "steer": {"steer_prompts", "steer_vectors", "steer_attention", "steer_memory"},
    "plugins/steer_prompts": {"steer_vectors", "steer_attention", "steer_memory"},
    "plugins/steer_vectors": {"steer_prompts", "steer_attention", "steer_memory"},
    "plugins/steer_attention": {"steer_prompts", "steer_vectors", "steer_memory"},
    "plugins/steer_memory": {"steer_prompts", "steer_vectors", "steer_attention"},
}


@pytest.mark.parametrize("package", SIDES)
def test_imports_point_one_way(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            wrong = {name for name in names if name.split(".")[0] in SIDES[package]}
            assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
