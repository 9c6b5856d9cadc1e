"""The README's commands are those that CI runs, and its links and code lead somewhere."""

from __future__ import annotations

import re
import subprocess

import pytest

import steer

from .blocks import ROOT, blocks
from .experiment_scripts import modules

README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def test_the_first_five_lines_run():
    code = README.partition("```python\n")[2].partition("```")[0]
    assert README.startswith("# steer\n")
    assert len(code.strip().splitlines()) == 5
    _, processor = steer.zoo.load("tiny-vlm")
    example = steer.zoo.examples("colour", "test", n=1)[0]
    content = [{"type": "image", "image": example.images[0]}, {"type": "text", "text": example.question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    namespace: dict = {"inputs": inputs}
    exec(code, namespace)
    assert namespace["answer"].shape[1] > inputs["input_ids"].shape[1]
    assert not namespace["session"].report().never_fired()


def test_the_count_of_architectures_is_that_of_the_generated_page():
    page = (ROOT / "docs/architectures.md").read_text()
    classes = re.search(r"^(\d+) classes: .*?(\d+)\s+of them were built", page, flags=re.MULTILINE | re.DOTALL)
    assert classes
    assert "**0 results failed.**" in page
    assert re.search(rf"^- \*\*map\*\*, {classes[2]} pass", page, flags=re.MULTILINE)
    assert re.search(rf"^- \*\*head edit\*\*, {classes[2]} pass in text", page, flags=re.MULTILINE)
    assert f"**{classes[2]} of the {classes[1]}** classes" in README
    assert f"in all {classes[2]} the map" in README
    assert f"The other {int(classes[1]) - int(classes[2])} need" in README


def test_the_comparison_is_the_short_form_of_the_page():
    with modules("comparison") as load:
        assert load("page").short().strip() in README


def test_every_name_in_the_table_of_methods_is_a_method_with_that_paper():
    known = steer.methods()
    table = README.partition("| system |")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) >= 15
    for row in rows:
        names = re.findall(r"`(\w+)`", row[1])
        assert names, row[0]
        assert set(names) <= set(known), row[0]
        (paper,) = re.findall(r"\((https://[^)]+)\)", row[-1])
        assert paper in {known[name].paper for name in names}, row[0]


@pytest.mark.parametrize("mark", ["install-and-demo", "install-and-test"])
def test_ci_runs_the_commands_of_the_readme(mark):
    block = re.search(rf"^<!-- {mark} -->\n```bash\n(.+)\n```$", README, flags=re.MULTILINE)
    assert block, f"README.md has no one-line command after <!-- {mark} -->"
    assert "-c constraints.txt" in block[1]
    assert f"from_readme {mark}" in (ROOT / ".ci/run").read_text()
    extract = f"source <(sed -n '/^readme()/,/^}}/p' .ci/run); python=PYTHON venv=VENV; readme {mark}"
    done = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == block[1].replace("python3 ", "PYTHON ").replace(".venv", "VENV")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_is_python(page):
    for code in blocks(str(page.relative_to(ROOT)), "python"):
        compile(code, page.name, "exec")
