"""Where what the scorers gather in the curvature pass shall lie: on the device, in host memory or on disk.

HyperINF's matrices for a 7B model with LoRA r = 64 on queries and values are 128 of 4096², 8.6 GB in float32. They are
gathered together but solved one at a time, so they need not lie on the device. What needs to is counted beside them:
what cannot be moved, the solution of the greatest block, and h = P v of every scorer, block and target.

Part of what is free is left alone (RESERVE): on the device for what the allocator cannot use in between; of host memory
for the workers that read data, the file cache and others; on disk for the run folder's own files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Literal

import torch

from vlmsel.scorers import BlockTargets, GradientScorer, Statistic
from vlmsel.scoring.memory import Memory, Place

Prefer = Literal["auto", "device", "host", "disk"]
PLACES: tuple[Place, ...] = ("device", "host", "disk")
NAMES = {"device": "on the device", "host": "in host memory", "disk": "on disk"}
RESERVE = {"device": 0.1, "host": 0.2, "disk": 0.05}  # share of what is free that is left alone


@dataclass(frozen=True)
class Plan:
    """A place for what is gathered, and the bytes needed and free at each place.

    Attributes:
        place: device, host or disk.
        contents: what is gathered there, such as "128 GFIM matrices".
        gathered: its bytes.
        needs: place -> bytes, what is gathered included.
        memory: what was free.
    """

    place: Place
    contents: str
    gathered: int
    needs: Mapping[str, int]
    memory: Memory

    def describe(self) -> str:
        """Say on one line what lies where and what was free."""
        if not self.contents:
            what, place = f"no matrices, {size(self.needs['device'])}", "device"
        else:
            what, place = f"{self.contents}, {size(self.gathered)}", self.place
        return f"curvature: {what} {_name(place, self.memory)} ({_free(self.memory)})"


def known_blocks(blocks: Mapping[str, tuple[int, int]], targets: int) -> dict[str, BlockTargets]:
    """Return blocks as scorers see them, without numbers; `blocks` are name -> (rows, cols)."""
    shapes = {name: (targets, *shape) for name, shape in blocks.items()}
    return {name: BlockTargets(torch.empty(shape, device="meta"), 1.0) for name, shape in shapes.items()}


@dataclass(frozen=True)
class _Task:
    """What is to be gathered and solved."""

    scorers: tuple[GradientScorer, ...]
    blocks: Mapping[str, tuple[int, int]]
    targets: int
    samples: int
    norms: bool = False

    @cached_property
    def known(self) -> dict[str, BlockTargets]:
        """The blocks as scorers see them, without numbers."""
        return known_blocks(self.blocks, self.targets)

    @cached_property
    def statistics(self) -> dict[tuple[str, str], Statistic]:
        """What each scorer needs of each block, without numbers."""
        pairs = [(scorer, name, block) for scorer in self.scorers for name, block in self.known.items()]
        found = {(scorer.name, name): scorer.statistic(block) for scorer, name, block in pairs}
        return {key: statistic for key, statistic in found.items() if statistic is not None}

    @cached_property
    def gathered(self) -> dict[tuple[str, str], Statistic]:
        """Those that are gathered: of equal ones the first."""
        first = {(block, one.key): (scorer, block) for (scorer, block), one in reversed(self.statistics.items())}
        return {key: one for key, one in self.statistics.items() if key in set(first.values())}

    def held(self, scorer: str, block: str) -> int:
        """Return the bytes of what a scorer needs of a block; 0 where it needs nothing."""
        statistic = self.statistics.get((scorer, block))
        return 0 if statistic is None else statistic.bytes(self.samples)

    def total(self, scorer: str) -> int:
        return sum(self.held(scorer, block) for block in self.blocks)

    def moved(self) -> int:
        """Return the bytes that may lie anywhere."""
        return sum(one.bytes(self.samples) for one in self.gathered.values() if one.movable)

    def needs(self, place: Place, memory: Memory) -> dict[str, int]:
        """Return the bytes needed at each place if what can be moved lies at `place`."""
        staying = sum(one.bytes(self.samples) for one in self.gathered.values() if not one.movable)
        solutions = sum(block.targets.nbytes for block in self.known.values()) * len(self.scorers)
        if self.norms:
            solutions += sum(s.metric_bytes(block) for s in self.scorers for block in self.known.values())
        movable = {key: one.bytes(self.samples) for key, one in self.statistics.items() if one.movable}
        brought = {} if place == "device" else movable  # to the device, to be solved
        pairs = product(self.scorers, self.known.items())
        solving = [brought.get((s.name, name), 0) + s.solve_bytes(block, self.samples) for s, (name, block) in pairs]
        arriving = max(brought.values(), default=0)
        needs = {"device": staying + solutions + max(solving, default=0), "host": arriving, "disk": 0}
        if memory.device_is_cpu:
            needs |= {"device": needs["device"] + arriving, "host": 0}
        needs[place if place != "host" or not memory.device_is_cpu else "device"] += self.moved()
        return needs

    def contents(self) -> str:
        counts = Counter(one.noun for one in self.gathered.values() if one.movable)
        return ", ".join(f"{count} {what}" for what, count in counts.items())


def plan_curvature(
    scorers: Sequence[GradientScorer],
    blocks: Mapping[str, tuple[int, int]],
    targets: int,
    fit_samples: int,
    memory: Memory,
    prefer: Prefer = "auto",
    norms: bool = False,
) -> Plan:
    """Choose the place for what all scorers gather: the first of device, host and disk that has room, or the one asked.

    Args:
        scorers, blocks: those of one pass; name -> (rows, cols).
        targets, fit_samples: how many; the latter matters to scorers that keep their gradients.
        memory: what is free, from `measure_memory`.
        prefer: auto, or the place to take.
        norms: whether scorers keep their own norms beside h.

    Raises:
        ValueError: there is no room, with the numbers and what would fit.

    >>> from vlmsel.scorers import HyperINF
    >>> memory = Memory(device_free=3_100_000_000, host_free=41_000_000_000, disk_free=10**12, device_is_cpu=False)
    >>> plan = plan_curvature([HyperINF()], {f"q.{i}": (64, 4096) for i in range(128)}, 1, 1000, memory)
    >>> plan.describe()
    'curvature: 128 GFIM matrices, 8.6 GB in host memory (device has 3.1 GB free, host 41 GB)'
    """
    if prefer not in ("auto", *PLACES):
        raise ValueError(f"curvature is placed on {prefer!r}; expected 'auto', 'device', 'host' or 'disk'")
    task = _Task(tuple(scorers), blocks, targets, fit_samples, norms)
    if (plan := _plan(task, memory, prefer)) is None:
        raise ValueError(_refusal(task, memory, prefer))
    return plan


def gathered_bytes(
    scorers: Sequence[GradientScorer], blocks: Mapping[str, tuple[int, int]], targets: int, fit_samples: int
) -> int:
    """Return the bytes of all that scorers gather, of equal ones once."""
    task = _Task(tuple(scorers), blocks, targets, fit_samples)
    return sum(one.bytes(fit_samples) for one in task.gathered.values())


def _plan(task: _Task, memory: Memory, prefer: Prefer) -> Plan | None:
    if (place := _choose(task, memory, prefer)) is None:
        return None
    return Plan(place, task.contents(), task.moved(), task.needs(place, memory), memory)


def _choose(task: _Task, memory: Memory, prefer: Prefer) -> Place | None:
    """Return the first place with room."""
    usable = _usable(memory)
    for place in PLACES if prefer == "auto" else (prefer,):
        if all(need <= usable[where] for where, need in task.needs(place, memory).items()):
            return place
    return None


def _usable(memory: Memory) -> dict[str, int]:
    """Return what may be taken at each place."""
    free = {"device": memory.device_free, "host": memory.host_free, "disk": memory.disk_free}
    share = RESERVE | ({"device": RESERVE["host"]} if memory.device_is_cpu else {})
    return {place: int(free[place] * (1 - share[place])) for place in free}


# Words


def size(count: int) -> str:
    """Write a number of bytes.

    >>> size(8_589_934_592), size(41_000_000_000), size(2_500)
    ('8.6 GB', '41 GB', '2.5 kB')
    """
    unit, name = next(((u, n) for u, n in ((1e9, "GB"), (1e6, "MB")) if count >= 0.9995 * u), (1e3, "kB"))
    return f"{count / unit:.{1 if count < 9.95 * unit else 0}f} {name}"


def _name(place: str, memory: Memory) -> str:
    return "in memory" if memory.device_is_cpu and place != "disk" else NAMES[place]


def _sizes(counts: Mapping[str, int], memory: Memory) -> str:
    """Write the bytes at each place, "2.7 GB on the device, 1.9 GB on disk"."""
    places = [place for place in counts if place != "host" or not memory.device_is_cpu]
    return ", ".join(f"{size(counts[place])} {_name(place, memory)}" for place in places if counts[place])


def _free(memory: Memory) -> str:
    if memory.device_is_cpu:
        return f"memory has {size(memory.host_free)} free, disk {size(memory.disk_free)}"
    return f"device has {size(memory.device_free)} free, host {size(memory.host_free)}"


def _refusal(task: _Task, memory: Memory, prefer: Prefer) -> str:
    """Say on one line what each scorer would hold, what may be taken, and what would fit."""
    leading = dict.fromkeys(scorer for scorer, _ in task.gathered)
    names = [s.name for s in task.scorers if s.name in leading or not task.total(s.name)]
    held = ", ".join(_holding(task, name) for name in names)
    last = "disk" if prefer == "auto" else prefer
    tried = "at any place" if prefer == "auto" else _name(prefer, memory)
    mends = "; ".join(mend for mend in (suggest(task, memory, prefer) for suggest in MENDS) if mend)
    return (
        f"what the scorers gather has no room {tried}: {held}; gathered {_name(last, memory)} it takes "
        f"{_sizes(task.needs(last, memory), memory)}, and there are {_sizes(_usable(memory), memory)} to take; "
        f"what would fit: {mends or 'none of side=short, fewer blocks or fit samples, another scorer'}"
    )


def _holding(task: _Task, scorer: str) -> str:
    """Say what one scorer would hold, naming the block that takes most."""
    if not task.total(scorer):
        return f"{scorer} nothing"
    largest = max(task.blocks, key=lambda block: task.held(scorer, block))
    return (
        f"{scorer} {size(task.total(scorer))} ({len(task.blocks)} {task.statistics[scorer, largest].noun}, the largest "
        f"{size(task.held(scorer, largest))} for {largest} {list(task.blocks[largest])})"
    )


# What would fit


def _elsewhere(task: _Task, memory: Memory, prefer: Prefer) -> str:
    place = _choose(task, memory, "auto") if prefer != "auto" else None
    return f"another place, {place!r}" if place else ""


def _lighter(task: _Task, memory: Memory, prefer: Prefer) -> str:
    """Suggest settings with which scorers need less."""
    for words in dict.fromkeys(words for scorer in task.scorers for words in scorer.lighter()):
        changed = [(scorer, scorer.lighter().get(words)) for scorer in task.scorers]
        other = replace(task, scorers=tuple(lighter or scorer for scorer, lighter in changed))
        names = [scorer.name for scorer, lighter in changed if lighter is not None]
        if _choose(other, memory, prefer):
            return f"{names[0]} with {words} ({size(sum(map(other.total, names)))})"
    return ""


def _fewer_samples(task: _Task, memory: Memory, prefer: Prefer) -> str:
    most = _most(task.samples, lambda n: replace(task, samples=n), memory, prefer)
    return most and f"fit_samples={most} or fewer"


def _fewer_blocks(task: _Task, memory: Memory, prefer: Prefer) -> str:
    sizes = {block: max(task.held(scorer.name, block) for scorer in task.scorers) for block in task.blocks}
    rising = sorted(task.blocks.items(), key=lambda one: sizes[one[0]])
    most = _most(len(rising), lambda n: replace(task, blocks=dict(rising[:n])), memory, prefer)
    return most and f"fewer blocks, such as the {most} smallest of {len(rising)}"


def _fewer_targets(task: _Task, memory: Memory, prefer: Prefer) -> str:
    most = _most(task.targets, lambda n: replace(task, targets=n), memory, prefer)
    return most and f"{most} or fewer targets at a time (single target samples: --columns)"


def _fewer_scorers(task: _Task, memory: Memory, prefer: Prefer) -> str:
    heavy = {scorer for (scorer, _), one in task.statistics.items() if one.movable}
    light = replace(task, scorers=tuple(scorer for scorer in task.scorers if scorer.name not in heavy))
    if not _choose(light, memory, prefer):
        return ""
    return "scorers that hold no more than the targets, such as DataInf or LiSSA(batch='stream')"


def _most(top: int, some: Callable[[int], _Task], memory: Memory, prefer: Prefer) -> str:
    """Write the greatest number below `top` for which a task has room, if it has for all below; "" if for none."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _choose(some(middle), memory, prefer) else (low, middle - 1)
    return str(low) if 0 < low < top else ""


MENDS = (_elsewhere, _lighter, _fewer_samples, _fewer_blocks, _fewer_targets, _fewer_scorers)
