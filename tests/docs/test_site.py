"""The site: it builds without a warning, its links lead somewhere, nothing is fetched, nothing overflows."""

from __future__ import annotations

import functools
import json
import os
import queue
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import steer
from tests.browser import browsing, chromium

from .blocks import ROOT

DESKTOP, PHONE = 1280, 390
PATIENT = 120
# How far right a page's own content reaches; boxes that scroll by themselves (tables, code) may hold more.
LOOK = """
async function look(page, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = page;
  await new Promise(done => { frame.onload = done; document.body.append(frame); });
  const wide = frame.contentDocument.documentElement.scrollWidth;
  frame.remove();
  return [page, width, wide];
}
(async () => {
  const found = [];
  for (const page of PAGES) found.push(...await Promise.all(WIDTHS.map(width => look(page, width))));
  await fetch("/found", {method: "POST", body: JSON.stringify(found)});
})();
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, str]:
    return {str(path.relative_to(site)): path.read_text() for path in sorted(site.rglob("*.html"))}


def test_every_page_of_docs_is_a_page_of_the_site(pages):
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    template = Path("plugin-template")
    assert {str(path) for path in written if template not in path.parents} | {"404.html"} == set(pages)


def test_every_public_name_has_an_api_entry_made_of_its_docstring(pages):
    entries = set(
        re.findall(r'id="(steer\.[\w.]+)"', "".join(pages[name] for name in pages if name.startswith("api/")))
    )
    described = {part for name in entries for part in name.split(".")}
    missing = {name for name in steer.__all__ if not name.startswith("__")} - described
    assert not missing


def test_every_link_inside_the_site_leads_to_a_page_and_a_place(site, pages):
    places = {name: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for name, text in pages.items()}
    checked = 0
    for name, text in pages.items():
        for target in re.findall(r'(?:href|src)="([^"]*)"', text):
            parts = urlsplit(target)
            if parts.scheme or not (parts.path or parts.fragment) or name == "404.html":
                continue
            path = (site / name).parent / unquote(parts.path) if parts.path else site / name
            path = path / "index.html" if path.is_dir() else path
            assert path.exists(), f"{name} links to {target}"
            page = os.path.relpath(path, site)
            if parts.fragment and page in places and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in places[page], f"{name} links to {target}"
            checked += 1
    assert checked > 1000


def test_nothing_is_fetched_from_elsewhere(pages):
    """Links may lead away; scripts, styles, fonts and pictures are the site's own."""
    for name, text in pages.items():
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
        fetched = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="(https?://[^"]+)"', text)
        fetched += re.findall(
            r'<link[^>]*\brel="(?:stylesheet|preconnect|preload)"[^>]*\bhref="(https?://[^"]+)"', text
        )
        assert not fetched, name


class _Served(ThreadingHTTPServer):
    """The site on this machine, with one more page, and what that page's script tells."""

    def __init__(self, site: Path, script: str) -> None:
        self.told: queue.Queue[Any] = queue.Queue()
        page = f"<!doctype html><body><script>{script}</script></body>".encode()
        told = self.told

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                """Nothing: a test has no use for a log of requests."""

            def do_GET(self) -> None:
                if self.path != "/looking":
                    return super().do_GET()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page)
                return None

            def do_POST(self) -> None:
                told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))

    def __enter__(self) -> _Served:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


def test_no_page_is_wider_than_a_desktop_or_a_phone(site, pages, tmp_path):
    chromium()
    names = [name for name in pages if name != "404.html"]
    script = LOOK.replace("PAGES", json.dumps(names)).replace("WIDTHS", json.dumps([DESKTOP, PHONE]))
    with _Served(site, script) as server:
        with browsing(f"http://127.0.0.1:{server.server_address[1]}/looking", tmp_path, width=2000):
            found = server.told.get(timeout=PATIENT)
    assert len(found) == 2 * len(names)
    assert not [(page, width, wide) for page, width, wide in found if wide > width]
