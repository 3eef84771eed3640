"""Run folders: what was asked for, with which versions, and results written so that a killed process leaves no half
file.

A run folder holds `config.yaml` (the resolved command), `environment.json` and the command's results. Running the same
command again with the same folder goes on, and only where all that the result depends on is the same: configuration,
versions, and the contents of what it reads. Another configuration is refused, unless the first one stopped before it
had anything to go on from (a wrong path, too little memory): then the mended command may have the folder. What no
result depends on (`FREE`) never blocks it. One process at a time works in a folder, or several jobs that share it.

Nobody else's file is deleted or overwritten: a folder is looked at before it is tidied, and only names that were
written here count as ours.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FREE = (  # settings that no result depends on
    "device", "workers", "curvature_on", "shard", "check", "seeds", "rank_by", "clean", "allow_missing", "against",
    "settings.workers", "settings.save_every", "settings.log_to",
)  # fmt: skip
_LOCK = ".lock"
_handles: dict[str, int] = {}  # of the lock files that this process has open
_BEFORE_RESULTS = ("config.yaml", "environment.json", "inputs.json", "not_finite.json")  # and skipped*.json
_HOST = re.sub(r"[^\w-]", "-", socket.gethostname()) or "host"
_PART = re.compile(r".+\.vlmsel\.[\w-]+\.\d+\.part")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PACKAGES = ("vlmsel", "torch", "transformers", "peft", "open_clip_torch", "accelerate", "datasets", "pillow", "numpy")


@contextmanager
def atomic_path(path: str | Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` when the block ends without an error.

    Where it is not `durable`, a crash of the machine may leave a file cut off, which its reader must notice.

    Raises:
        OSError: the disk is full; see `writing`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.vlmsel.{_HOST}.{os.getpid()}.part")  # several jobs may write the same file
    try:
        with writing(path):
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # safetensors makes files that their owner alone can read
            if durable:
                _reach_disk(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`, which takes its place as a whole when the block ends without an error.

    Raises:
        OSError: the disk is full; see `writing`.
    """
    folder = Path(folder)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with writing(folder):
            part.mkdir(parents=True)
            mode = part.stat().st_mode & 0o666
            yield part
            for file in filter(Path.is_file, part.rglob("*")):
                file.chmod(mode)  # as in `atomic_path`
                _reach_disk(file)
        if folder.is_dir():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Say what is being written and how much room its disk has when that is full, whichever library finds it so.

    Raises:
        OSError: the disk is full, or takes no file of this size.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as problem:
        if (reason := _full(problem)) is None:
            raise
        there = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        free = shutil.disk_usage(there).free / 1e9
        raise OSError(
            f"{path}: cannot be written ({reason}); its disk has {free:.1f} GB free; make room and start again"
        ) from problem


def require_room(folder: str | Path, needs: float, what: str, mend: str) -> None:
    """Refuse to write more bytes than a folder's disk has room for.

    Raises:
        ValueError: names folder, what is written, and both numbers.
    """
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.is_dir())
    if needs > (free := shutil.disk_usage(there).free):
        raise ValueError(
            f"{folder}: {what} takes {needs / 1e9:.3g} GB more and the disk has {free / 1e9:.3g} GB free; {mend}, or a "
            "folder on another disk"
        )


def bytes_in(folder: str | Path) -> int:
    """Count the bytes of all files in a folder, 0 where there is none."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def _full(problem: Exception) -> str | None:
    """Say why nothing more can be written, None where an error means something else."""
    text = str(problem)
    if re.search("PytorchStreamWriter|inline_container", text):  # torch does not say why
        return "no space left, or a file too large"
    said = re.search(r"\(os error (\d+)\)", text) if isinstance(problem, SafetensorError) else None
    number = int(said[1]) if said else getattr(problem, "errno", None)
    return os.strerror(number) if number in _FULL else None


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


def _reach_disk(path: Path) -> None:
    """Wait until a file's bytes are on the disk: renamed before, it may be empty after a crash of the machine."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def environment() -> dict[str, str]:
    """Return the versions that a result depends on, and where it came about."""
    return {"python": platform.python_version(), "platform": platform.platform(), **versions()}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on, by their names."""
    return {package: _version(package) for package in _PACKAGES}


@cache  # a process does not see another version than the one it began with
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def open_run(folder: str | Path, config: str, worker: str = "") -> Path:
    """Make or reopen a run folder.

    Args:
        folder: where it is.
        config: the resolved configuration as text, a YAML mapping.
        worker: tells apart the jobs that share the folder; at most one of each name works in it at a time, and none
            beside a run that has the folder to itself.

    Raises:
        ValueError: the folder holds a run of another configuration or other files, or another process works in it.
    """
    folder = Path(folder)
    path = folder / "config.yaml"
    _require_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    alone = _lock_folder(folder, worker)
    if path.is_file() and (difference := _difference(path, config)):
        if not alone or _begun(folder):
            raise ValueError(_another(folder, difference))
        for file in filter(Path.is_file, list(contents(folder))):  # runs in folders of it are opened by themselves
            file.unlink()
    if alone:
        tidy(folder)
    write_json(folder / "environment.json", environment())  # first: what has no such file is not ours
    if not path.is_file():
        write_text(path, config)
    return folder


def could_open(folder: Path, config: str) -> bool:
    """Tell whether `open_run` would go on with a run that lies in a folder; nothing is written.

    Raises:
        ValueError: the folder holds a run of another configuration or other files.
    """
    _require_ours(folder)
    path = folder / "config.yaml"
    if path.is_file() and _begun(folder) and (difference := _difference(path, config)):
        raise ValueError(_another(folder, difference))
    return path.is_file() and _begun(folder)


def _another(folder: Path, difference: str) -> str:
    return f"{folder}: holds a run of another configuration ({difference}); choose another --out or delete the folder"


def _require_ours(folder: Path) -> None:
    """Refuse a folder that holds anything but a run, such as a configuration that somebody wrote."""
    if not folder.exists():
        return
    names = {file.name for file in contents(folder)} if folder.is_dir() else {""}
    if names - {"environment.json"} and not names >= {"config.yaml", "environment.json"}:
        lacking = "environment.json" if "config.yaml" in names else "config.yaml"
        raise ValueError(f"{folder}: exists but is not a run folder (no {lacking}); choose another --out")


def _lock_folder(folder: Path, worker: str) -> bool:
    """Keep others out of a folder; tell whether this process is alone in it, as a job that shares it may not be."""
    if not worker:
        lock(folder / _LOCK)
        return True
    try:
        alone = lock(folder / _LOCK)
    except ValueError:
        alone = False
    lock(folder / _LOCK, shared=True)
    lock(folder / f"{_LOCK}{worker}")
    return alone


def same_inputs(folder: Path, inputs: Mapping[str, str], more: bool = False) -> None:
    """Record what a run depends on beside its configuration, or refuse to go on from something else.

    `inputs` are digests of contents by what they are called: all of them, or `more` beside those of earlier calls. The
    versions of libraries are recorded with them.

    Raises:
        ValueError: something changed since the run began; names it.
    """
    path, begun = folder / "inputs.json", folder.is_dir() and _begun(folder)
    if begun and not path.is_file():
        raise ValueError(f"{folder}: does not say what it began with (inputs.json); choose another --out or delete it")
    known = read_json(path) if path.is_file() else {}
    libraries = {f"the version of {name}": number for name, number in versions().items()}
    now = {**(known if more else {}), **libraries, **inputs}
    changed = [name for name in (known if more else {**known, **now}) if known.get(name) != now.get(name)]
    if begun and changed:
        raise ValueError(f"{folder}: {_changed(changed[0], known, now)}; choose another --out or delete it")
    write_json(path, now)


def _changed(name: str, earlier: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say that an input changed, and how where that is short, as versions are."""
    was, come = earlier.get(name, "not there"), now.get(name, "not there")
    how = f" ({was} then, {come} now)" if len(was) < 40 and len(come) < 40 else ""
    return f"{name} changed since this run began{how}"


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
    """Delete what killed processes left half-written; nobody on another machine is at work in the folder."""
    for file in folder.rglob("*.part"):
        if half_written(file) and file.is_file() and not _alive(file):
            file.unlink(missing_ok=True)


def _alive(part: Path) -> bool:
    """Tell whether the process that writes a file runs on this machine."""
    host, pid = part.name.split(".")[-3:-1]
    if host != _HOST or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def half_written(path: Path) -> bool:
    """Tell by its name whether a file is one that `atomic_path` left when its process was killed."""
    return _PART.fullmatch(path.name) is not None


def contents(folder: Path) -> Iterator[Path]:
    """Give what lies in a folder, but for what a killed process may leave behind."""
    return (file for file in folder.iterdir() if not (file.name.startswith(_LOCK) or half_written(file)))


def _begun(folder: Path) -> bool:
    """Tell whether a run, or one in a folder of it, has anything to go on from."""
    found = [file for file in contents(folder) if file.name not in _BEFORE_RESULTS]
    found = [file for file in found if not (file.name.startswith("skipped") and file.suffix == ".json")]
    return any(not (file / "config.yaml").is_file() or _begun(file) for file in found)


def lock(path: Path, shared: bool = False) -> bool:
    """Keep other processes out of a folder until this one ends: two would write the same files.

    The system drops a record lock when its process ends, however it ends, but also when the process closes the file,
    which is therefore left open until `unlock`. Locking again in the same process is no conflict, and changes the kind
    of the lock. Those who share it keep only others out.

    Returns:
        Whether it is locked; False where the system or the file system has no locks.

    Raises:
        ValueError: another process has the folder.
    """
    if fcntl is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    key = os.path.realpath(path)
    handle = _handles[key] if key in _handles else os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as problem:
        if key not in _handles:
            os.close(handle)
        if not isinstance(problem, BlockingIOError | PermissionError):
            return False
        raise ValueError(
            f"{path.parent}: another process is at work in this folder; wait until it ends, or choose another one"
        ) from None
    _handles[key] = handle
    return True


def unlock(path: Path) -> None:
    """Let others have what `lock` kept."""
    if (handle := _handles.pop(os.path.realpath(path), None)) is not None:
        os.close(handle)


def _difference(path: Path, new: str) -> str:
    """Say which settings of a configuration file and another configuration differ; "" when none does."""
    try:
        return different(path.read_text(encoding="utf-8"), new)
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path}: damaged; choose another --out or delete the folder") from None


def different(was: str, now: str) -> str:
    """Say which settings of two configurations differ; "" when none does.

    The order of settings, comments, settings that are null or `FREE`, and how a path is written make no difference.

    >>> different("model: .", f"model: {Path.cwd()}"), different("seed: 1", "seed: 2")
    ('', 'there: seed: 1; now: seed: 2')
    """
    old, new = (dict(_settings(yaml.safe_load(text) or {})) for text in (was, now))
    same = {name for name in old.keys() & new.keys() if old[name] == new[name] or _one_file(old[name], new[name])}
    gone = "; ".join(f"{name}: {old[name]}" for name in old if name not in same)
    come = "; ".join(f"{name}: {new[name]}" for name in new if name not in same)
    return f"there: {gone or 'nothing'}; now: {come or 'nothing'}" if gone or come else ""


def _one_file(one: str, other: str) -> bool:
    """Say whether two settings are paths of the same file."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # they are no paths
        return False


def _settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give the settings that matter by their dotted names."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{name}.")
        elif value is not None and f"{prefix}{name}" not in FREE:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
