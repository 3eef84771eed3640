"""Memory to gather in: how much is free on the device, on the host and on disk, and zeros that lie there.

On disk a tensor is a part of a memory-mapped file that has no name any more: its room is reserved when it is made, so
that a full disk is an error then rather than a crash later, and returns when the tensor is dropped or the process ends.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vlmsel import runs
from vlmsel.scorers.statistics import Zeros, zeros_on

Place = Literal["device", "host", "disk"]
SEGMENT = 2**26  # bytes of a file that small tensors share, for a process may map some 65,000 files
ALIGNED = 64  # bytes that a tensor in a file starts at a multiple of


@dataclass(frozen=True)
class Memory:
    """Free bytes on the device, in host memory and on disk; `device_is_cpu` where the first two are the same."""

    device_free: int
    host_free: int
    disk_free: int
    device_is_cpu: bool


def measure_memory(device: torch.device | str, folder: Path, processes: int = 1) -> Memory:
    """Measure what is free now, for one of `processes` processes that share the host and the disk of `folder`.

    What torch has reserved on a GPU counts as used: measured after a backward, it is what a batch takes.
    """
    device = torch.device(device)
    host = host_free() // processes
    own = device.type not in ("cpu", "mps")  # Apple's GPUs use the host's memory
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host
    return Memory(free, host, shutil.disk_usage(_existing(folder)).free // processes, not own)


def host_free(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of host memory that may be taken without swapping, within a container's limit."""
    return min(_available(meminfo), _allowed(cgroup))


def _available(meminfo: Path) -> int:
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    page = os.sysconf("SC_PAGE_SIZE")
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    return page * os.sysconf("SC_PHYS_PAGES") // 2  # macOS does not tell; half of all


def _allowed(cgroup: Path) -> int:
    """Return what a container may still take, its file cache counted as free; all there is where it has no limit."""
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such files, or the limit is "max"
        return 2**62
    return max(0, limit - used + int(cached.get("inactive_file", 0)))


def _existing(folder: Path) -> Path:
    folder = Path(folder).absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())


def zeros_at(place: Place, device: torch.device | str, folder: Path | None = None) -> Zeros:
    """Return what makes zeros at a place, for `Statistic.zeros`.

    Raises:
        ValueError: disk without a folder.
    """
    if place != "disk":
        return functools.partial(zeros_on, torch.device(device if place == "device" else "cpu"))
    if folder is None:
        raise ValueError("matrices on disk need a folder")
    return DiskZeros(Path(folder))


class DiskZeros:
    """Makes zeros in unnamed files of a folder, memory-mapped; small ones share a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segment = torch.empty(0, dtype=torch.uint8)

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.zeros(shape, dtype=dtype)
        if size > SEGMENT // 2:
            return self._mapped(size).view(dtype).view(shape)
        if size > len(self._segment):
            self._segment = self._mapped(SEGMENT)
        part, taken = self._segment[:size], -(-size // ALIGNED) * ALIGNED
        self._segment = self._segment[taken:]
        return part.view(dtype).view(shape)

    def _mapped(self, size: int) -> Tensor:
        """Map a new file of `size` bytes, all zero."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number, path = tempfile.mkstemp(prefix="curvature.", suffix=".map", dir=self.folder)
        try:
            with runs.writing(path):
                _reserve(number, size)
            return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        finally:
            os.close(number)
            os.unlink(path)


def _reserve(number: int, size: int) -> None:
    """Give an open file its room on the disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
        return
    for start in range(0, size, SEGMENT):
        os.write(number, bytes(min(SEGMENT, size - start)))
