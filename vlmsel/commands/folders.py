"""Run folders as commands open them: together in several processes, and apart from settings that change no result."""

from __future__ import annotations

from pathlib import Path

from vlmsel import processes, runs


def open_together(out: str, config: str, worker: str = "") -> Path:
    """Open a run folder in the first of several processes; the others go on when it is open.

    `worker` tells jobs apart that work in one folder without knowing of each other.
    """
    if processes.is_main():
        runs.open_run(out, config, worker)
    processes.wait()
    return Path(out)


def without(config: str, *settings: str) -> str:
    """Take settings out of a resolved configuration that do not change the result."""
    lines = config.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(tuple(f"{setting}:" for setting in settings)))
