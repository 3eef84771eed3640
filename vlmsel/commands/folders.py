"""Run folders as commands open them: together in several processes."""

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
