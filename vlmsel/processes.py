"""Which of several processes this one is, as `accelerate launch` and `torchrun` say, and a place where they all wait.

Work is dealt by rank and merged through files in the run folder, which all processes must see.
"""

from __future__ import annotations

import os


def rank() -> int:
    """Return this process's number among all; 0 when it runs alone."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Tell whether this is the process that opens the run folder, prints and writes results."""
    return rank() == 0


def wait() -> None:
    """Go on when every process has come here; at once when there is only one."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        state = PartialState(
            cpu=not torch.cuda.is_available()
        )  # without the flag accelerate takes CPUs for one process
        assert state.num_processes == count(), f"{state.num_processes} processes found, {count()} announced"
        state.wait_for_everyone()
