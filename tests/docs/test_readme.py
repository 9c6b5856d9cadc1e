"""The README's commands are those that CI runs, and its links and code lead somewhere."""

from __future__ import annotations

import re
import subprocess

import pytest

import steer

from .blocks import ROOT, blocks

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_first_five_lines_run():
    code = README.partition("```python\n")[2].partition("```")[0]
    assert README.startswith("# steer\n\n```python\n")
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
