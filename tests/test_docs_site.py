"""The book as mkdocs builds it: without a warning, every link and anchor leads somewhere, and nothing is fetched."""

import doctest
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from vlmsel.cli import COMMANDS
from vlmsel.shell.listed import listed

pytest.importorskip("mkdocs", reason="mkdocs-material is not installed (the extra `docs`)")
ROOT = Path(__file__).parents[1]
LOADS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}


OFFLINE = """
import socket

def refuse(*_):
    raise AssertionError("the book is built without a network")

socket.socket.connect = socket.getaddrinfo = refuse
"""


class Read(HTMLParser):
    """What a page links to, has anchors for, and loads."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.loaded = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.update(value for name, value in given.items() if name in ("id", "name") and value)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in LOADS and given.get(LOADS[tag]) and given.get("rel") != "canonical":
            self.loaded.append(given[LOADS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages by path, read."""
    out = tmp_path_factory.mktemp("book")
    (out / "python").mkdir()
    (out / "python/sitecustomize.py").write_text(OFFLINE)
    quiet = {"PYTHONPATH": str(out / "python"), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(out / "site")],
        cwd=ROOT, env={**os.environ, **quiet}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    out = out / "site"
    pages = {path.relative_to(out): Read(path.read_text("utf-8")) for path in out.rglob("*.html")}
    return out, pages


def problems(out, page, read, pages):
    """Say which links of a page lead nowhere."""
    for link in [*read.links, *read.loaded]:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = out / page.parent / unquote(parts.path) if parts.path else out / page
        if page.name == "404.html" and link.startswith("/"):
            path = out / unquote(parts.path)[1:]
        target = Path(os.path.normpath(path / "index.html" if path.is_dir() else path))
        if not target.is_file():
            yield f"{page}: {link}"
        elif parts.fragment and unquote(parts.fragment) not in pages[target.relative_to(out)].anchors:
            yield f"{page}: no anchor {link}"


def test_links_and_anchors_lead_somewhere(site):
    out, pages = site
    assert len(pages) > 35
    assert [said for page, read in pages.items() for said in problems(out, page, read, pages)] == []


def test_the_checker_finds_what_is_wrong(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="a.html#x">1</a><a href="#y">2</a><img src="no.png">')
    pages = {Path("a.html"): Read((tmp_path / "a.html").read_text())}
    found = list(problems(tmp_path, Path("a.html"), pages[Path("a.html")], pages))
    assert found == ["a.html: no anchor #y", "a.html: no.png"]


def test_no_page_fetches_anything(site):
    out, pages = site
    assert [one for read in pages.values() for one in read.loaded if urlsplit(one).netloc] == []
    styles = [path.read_text("utf-8") for path in out.rglob("*.css")]
    assert styles and not [found for text in styles for found in re.findall(r"url\([\"']?(?:https?:)?//[^)]*", text)]


def test_every_command_and_option_has_its_place(site):
    _, pages = site
    for command in COMMANDS:
        anchors = pages[Path(f"commands/{command}.html")].anchors
        options = {name[2:].rstrip("+").replace(".", "-") for name in listed()[command]["options"]}
        assert options - anchors == set(), command


def test_examples_of_the_tools_hold():
    from tools import docs_api, docs_commands, docs_site

    for module in (docs_api, docs_commands, docs_site):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


def test_public_names_are_in_the_reference(site):
    import vlmsel

    out, pages = site
    assert {f"vlmsel.{name}" for name in vlmsel._HOMES} <= pages[Path("api.html")].anchors
    assert "λ = damping · mean of (g_j)² over samples and entries" in (out / "api.html").read_text("utf-8")
