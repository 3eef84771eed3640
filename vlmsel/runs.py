"""Run folders: what was asked for, with which versions, and results written so that a killed process leaves no half
file.

A run folder holds `config.yaml` (the resolved command), `environment.json` and the command's results. Running the same
command again with the same folder goes on; another configuration is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("vlmsel", "torch", "transformers", "peft", "open_clip_torch", "accelerate", "datasets", "pillow", "numpy")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; names file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: not a JSON file ({problem})") from None


def file_hash(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def environment() -> dict[str, str]:
    """Return the versions that a result depends on."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def open_run(folder: str | Path, config: str) -> Path:
    """Make or reopen a run folder.

    Args:
        folder: the run folder.
        config: the resolved configuration as text; one setting per line.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds a run of another configuration.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    if path.is_file():
        _refuse_difference(folder, path.read_text(encoding="utf-8"), config)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: exists but is not a run folder (no config.yaml); choose another --out")
    else:
        write_text(path, config)
    write_json(folder / "environment.json", environment())
    return folder


def _refuse_difference(folder: Path, old: str, new: str) -> None:
    gone = [line.strip() for line in old.splitlines() if line not in new.splitlines()]
    come = [line.strip() for line in new.splitlines() if line not in old.splitlines()]
    if gone or come:
        raise ValueError(
            f"{folder}: holds a run of another configuration (there: {'; '.join(gone) or 'nothing'}; "
            f"now: {'; '.join(come) or 'nothing'}); choose another --out or delete the folder"
        )
