"""Run folders: what was asked for, with which versions, and results written so that a killed process leaves no half
file.

A run folder holds `config.yaml` (the resolved command), `environment.json` and the command's results. Running the same
command again with the same folder goes on; another configuration is refused, unless the first one stopped before it had
anything to go on from (a wrong path, too little memory): then the mended command may have the folder. One process at a
time works in a folder.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
_BEFORE_RESULTS = ("config.yaml", "environment.json", "inputs.json", "not_finite.json")  # and skipped*.json
_PACKAGES = ("vlmsel", "torch", "transformers", "peft", "open_clip_torch", "accelerate", "datasets", "pillow", "numpy")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several jobs may write the same file
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


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, head first, as CSV, atomically."""
    with atomic_path(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read_json(path: str | Path) -> Any:
    """Read JSON, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; names file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
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


def open_run(folder: str | Path, config: str, worker: str = "") -> Path:
    """Make or reopen a run folder.

    Args:
        folder: where it is.
        config: the resolved configuration as text; one setting per line.
        worker: tells apart the jobs that share the folder; at most one of each name works in it at a time.

    Raises:
        ValueError: the folder holds a run of another configuration or other files, or another process works in it.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    if folder.exists() and not path.is_file() and (not folder.is_dir() or list(contents(folder))):
        raise ValueError(f"{folder}: exists but is not a run folder (no config.yaml); choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock(folder / f"{_LOCK}{worker}")
    if not worker:
        tidy(folder)
    if path.is_file() and (difference := _difference(path.read_text(encoding="utf-8"), config)):
        if _begun(folder):
            raise ValueError(
                f"{folder}: holds a run of another configuration ({difference}); "
                "choose another --out or delete the folder"
            )
        for file in list(contents(folder)):
            file.unlink()
    if not path.is_file():
        write_text(path, config)
    write_json(folder / "environment.json", environment())
    return folder


def same_inputs(folder: Path, inputs: Mapping[str, str], more: bool = False) -> None:
    """Record what a run depends on beside its configuration, or refuse to go on from something else.

    `inputs` are digests of contents by what they are called: all of them, or `more` beside those of earlier calls.

    Raises:
        ValueError: something changed since the run began; names it.
    """
    path = folder / "inputs.json"
    known = read_json(path) if path.is_file() else {}
    inputs = {**known, **inputs} if more else dict(inputs)
    earlier = known if known and _begun(folder) else inputs
    changed = [name for name in {**earlier, **inputs} if earlier.get(name) != inputs.get(name)]
    if changed:
        raise ValueError(f"{folder}: {changed[0]} changed since this run began; choose another --out or delete it")
    write_json(path, inputs)


def report_left_out(path: Path, reasons: Mapping[int, str], total: int, source: str | Path) -> None:
    """Write which of a source's `total` samples were left out, uid and reason, as JSON, and print one line; no file
    when there are none."""
    if not reasons:
        path.unlink(missing_ok=True)  # an earlier call may have had some
        return
    write_json(path, [{"uid": uid, "reason": reasons[uid]} for uid in sorted(reasons)])
    first = min(reasons)
    print(
        f"{source}: {len(reasons)} of {total} samples left out, listed in {path} "
        f"(the first: sample {first}: {reasons[first]})"
    )


def tidy(folder: Path) -> None:
    """Delete what killed processes left half-written; nobody else is at work in the folder."""
    for file in folder.rglob("*.part"):
        if file.is_file():
            file.unlink()


def contents(folder: Path) -> Iterator[Path]:
    """Give what lies in a folder, but for what a killed process may leave behind."""
    return (file for file in folder.iterdir() if not file.name.startswith(_LOCK) and not file.name.endswith(".part"))


def _begun(folder: Path) -> bool:
    """Tell whether a run has anything to go on from."""
    names = {file.name for file in contents(folder)} - set(_BEFORE_RESULTS)
    return any(not (name.startswith("skipped") and name.endswith(".json")) for name in names)


def lock(path: Path) -> int | None:
    """Keep other processes out of a folder until this one ends: two would write the same files.

    The system drops a record lock when its process ends, however it ends, but also when the process closes the file;
    so it is left open, and who wants to unlock the folder closes what is returned, if anything. Opening a folder again
    in the same process is no conflict.

    Raises:
        ValueError: another process has the folder.
    """
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(handle)
        raise ValueError(
            f"{path.parent}: another process is at work in this folder; wait until it ends, or choose another one"
        ) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle


def _difference(old: str, new: str) -> str:
    """Say which settings of two configurations differ; "" when none does.

    The order of lines, comments and settings that are null make no difference.
    """
    was, now = _settings(old), _settings(new)
    gone = "; ".join(line.strip() for line in was if line not in now)
    come = "; ".join(line.strip() for line in now if line not in was)
    return f"there: {gone or 'nothing'}; now: {come or 'nothing'}" if gone or come else ""


def _settings(config: str) -> list[str]:
    return [line for line in config.splitlines() if not line.startswith("#") and not line.endswith(": null")]
