"""What lies in run folders: which command made each, with which settings, and the choices beside them.

A folder is known by the first line of its `config.yaml`, `# vlmsel <command>`. Of `choose` and `demo` the folders of
their steps are taken too. A choice is a manifest, `<file>.manifest.json`, in a folder or by its own name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlmsel import runs

MANIFEST = ".manifest.json"
STEPS = {"choose": ("warmup", "score"), "demo": ("align", "seed0/score")}
CHOICES = {"demo": "seed0/selected"}  # where a run's choices lie, if not in the folder itself


@dataclass(frozen=True)
class Run:
    """A run folder: the command that made it and its resolved configuration."""

    command: str
    folder: Path
    text: str

    @property
    def config(self) -> dict[str, Any]:
        """The settings."""
        found = yaml.safe_load(self.text)
        return found if isinstance(found, dict) else {}

    def json(self, name: str) -> Any:
        """Read one of its files, None where it is not there."""
        path = self.folder / name
        return runs.read_json(path) if path.is_file() else None


@dataclass(frozen=True)
class Choice:
    """A chosen part of a pool: its manifest and where the manifest lies."""

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """What it is called: the file's name, and its folder's."""
        return f"{self.path.parent.name}/{self.path.name.removesuffix(MANIFEST)}"

    @property
    def scorer(self) -> str:
        """Whose scores or affinities chose; several have their names joined."""
        columns = self.manifest.get("columns", [])
        return str(self.manifest.get("scorer") or " + ".join({name.rpartition("/")[0]: 0 for name in columns}))


@dataclass(frozen=True)
class Found:
    """All that a page is about, in the order in which it was given."""

    runs: list[Run] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    def by(self, *commands: str) -> list[Run]:
        """Return the runs of some commands."""
        return [run for run in self.runs if run.command in commands]


def find(paths: Sequence[str | Path]) -> Found:
    """Open run folders, manifests and chosen files.

    Raises:
        FileNotFoundError: a path is not there.
        ValueError: it is neither a run folder nor a choice.
    """
    found = Found()
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such run folder")
        opened, choices = list(_runs(path)), list(_choices(path))
        if not opened and not choices:
            raise ValueError(f"{path}: neither a run folder (no config.yaml of vlmsel) nor a choice (no *{MANIFEST})")
        known = {run.folder.resolve() for run in found.runs}
        found.runs.extend(run for run in opened if run.folder.resolve() not in known)
        known = {choice.path.resolve() for choice in found.choices}
        found.choices.extend(choice for choice in choices if choice.path.resolve() not in known)
    return found


def _runs(folder: Path) -> Iterator[Run]:
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if command := re.match(r"# vlmsel (\w+)\n", text):
        yield Run(command[1], folder, text)
        for step in STEPS.get(command[1], ()):
            yield from _runs(folder / step)


def _choices(path: Path) -> Iterator[Choice]:
    if path.is_file():
        named = path if path.name.endswith(MANIFEST) else path.with_name(path.name + MANIFEST)
        files = [named] if named.is_file() else []
    else:
        files = sorted(path.glob(f"*{MANIFEST}"))
        for run in _runs(path):
            files += sorted((run.folder / CHOICES.get(run.command, "-")).glob(f"*{MANIFEST}"))
    for file in files:
        manifest = runs.read_json(file)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("uids"), list):
            raise ValueError(f"{file}: not a manifest of `vlmsel select` (no list of uids); give another path")
        yield Choice(file, manifest)
