"""The hook of mkdocs.yml: pages that are made at build time, and links that lead somewhere in both places.

Pages in docs/ link as files of the repository do, so that they can be read there; README.md, CONTRIBUTING.md and the
recipes' READMEs become pages of the site, whatever else they or docs/ link to lies in the site under its own path.
The reference of commands is made from vlmsel/assets/options.json, that of Python from docstrings; torch is not needed.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs imports this file by its path

from tools import docs_api, docs_commands  # noqa: E402

PAGES = {"README.md": "overview.md", "CONTRIBUTING.md": "contributing.md", "recipes/README.md": "recipes/index.md"}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
HEADED = re.compile(r"^# (.+)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Put the commands and the recipes into the navigation."""
    for section in config.nav:
        for name, pages in section.items() if isinstance(section, dict) else ():
            if name == "Recipes":
                pages += [{one.parts[-2]: site_path(one.as_posix())} for one in recipes()]
            if name == "Reference":
                pages[0] = {"Commands": [pages[0], *({one: f"commands/{one}.md"} for one in docs_commands.names())]}
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and the files that pages link to."""
    made = {site_path(one): (ROOT / one).read_text("utf-8") for one in sources()}
    made |= docs_commands.pages() | {"api.md": docs_api.page()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted(linked()):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links between files of the repository to where these lie in the site."""
    here = page.file.src_uri
    return LINK.sub(lambda found: moved(found, here), markdown)


def on_post_page(output: str, **_: Any) -> str:
    """Name what the theme leaves without one."""
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">')


def recipes() -> list[Path]:
    """Return the recipes' READMEs, relative to the repository."""
    return [one.relative_to(ROOT) for one in sorted(ROOT.glob("recipes/*/README.md"))]


def sources() -> list[str]:
    """Name the files outside docs/ that become pages."""
    return [*PAGES, *(one.as_posix() for one in recipes())]


def site_path(path: str) -> str:
    """Say where a file of the repository lies in the site.

    >>> site_path("docs/pools.md"), site_path("recipes/demo/README.md"), site_path("recipes/demo/quick.png")
    ('pools.md', 'recipes/demo/index.md', 'recipes/demo/quick.png')
    """
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/").replace("README.md", "index.md")


def repository_path(page: str) -> str:
    """Say which file of the repository a page of the site is made from; docs/ is where those lie that are in none."""
    return next((one for one in sources() if site_path(one) == page), f"docs/{page}")


def moved(link: re.Match[str], page: str) -> str:
    """Write a link of a page anew."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(repository_path(page)), link[2]))
    if not (ROOT / target).exists():
        return link[0]  # a page that is made; mkdocs tells where there is none
    there = posixpath.relpath(site_path(target), posixpath.dirname(page) or ".")
    return f"{link[1]}{there}{link[3] or ''}{link[4]}"


def linked() -> set[str]:
    """Name the files of the repository that a page links to and that are no pages themselves."""
    found = set()
    for page in [*sources(), *(f"docs/{one.name}" for one in ROOT.glob("docs/*.md"))]:
        for link in LINK.finditer((ROOT / page).read_text("utf-8")):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link[2]))
            if (ROOT / path).is_file() and not path.startswith("docs/"):
                found.add(path)
    return found - set(sources())
