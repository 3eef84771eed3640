"""From targets to preconditioned targets: h = P v for every scorer and target, from one curvature pass.

The stack of all h per block is what the score pass needs; column c belongs to `names[c] = (scorer, target)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmsel import runs
from vlmsel.gradients import Block
from vlmsel.scorers import Scorer
from vlmsel.scorers.memory import check_kept
from vlmsel.scoring.passes import Bad, Objective, curvature_pass, gradient_scorers, mean_squares, target_gradients

Batches = Callable[[], Iterable[Any]]  # a fresh stream each time it is called
KEPT_GIGABYTES = 4.0  # per-sample gradients that scorers may keep in memory during the curvature pass


@dataclass(frozen=True)
class Directions:
    """Preconditioned targets: per block `[columns, rows, cols]`, and which scorer and target each column is."""

    names: tuple[tuple[str, str], ...]
    stacks: dict[str, Tensor]
    details: dict[str, Any]

    def save(self, path: Path) -> None:
        about = {"names": json.dumps(self.names), "details": json.dumps(self.details)}
        with runs.atomic_path(path) as part:
            save_file({k: v.contiguous().cpu() for k, v in self.stacks.items()}, part, metadata=about)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Directions:
        with safe_open(path, framework="pt", device=str(device)) as file:
            about = file.metadata()
            stacks = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        names = tuple((scorer, target) for scorer, target in json.loads(about["names"]))
        return cls(names, stacks, json.loads(about["details"]))


@dataclass(frozen=True)
class Streams:
    """What the passes read: batches of the fit samples, of the samples that damping is measured on, and of each
    target."""

    fit: Batches
    scale: Batches
    targets: Mapping[str, Batches]
    fit_count: int


def find_directions(
    model: nn.Module,
    streams: Streams,
    scorers: Sequence[Scorer],
    blocks: Sequence[Block],
    objective: Objective,
    bad: Bad,
) -> Directions:
    """Run the target passes and the curvature pass and solve every accumulator.

    Raises:
        ValueError: a target without usable samples, or scorers that would not fit into memory.
    """
    scorers = gradient_scorers(scorers)
    shapes = {block.name: (block.rows, block.cols) for block in blocks}
    check_kept(scorers, streams.fit_count, shapes, limit=KEPT_GIGABYTES * 1e9)
    targets = _stack_targets(model, streams, blocks, objective)
    measured = any(scorer.needs_mean_square for scorer in scorers)
    squares = mean_squares(model, streams.scale(), objective, blocks, bad) if measured else {}
    accumulators = {
        (scorer.name, block.name): scorer.accumulator(targets[block.name], squares.get(block.name))
        for scorer in scorers
        for block in blocks
    }
    curvature_pass(model, streams.fit(), objective, accumulators, blocks, bad)
    return _solve(accumulators, scorers, blocks, list(streams.targets))


def _stack_targets(
    model: nn.Module, streams: Streams, blocks: Sequence[Block], objective: Objective
) -> dict[str, Tensor]:
    means = {}
    for name, batches in streams.targets.items():
        try:
            means[name] = target_gradients(model, batches(), objective, blocks)[0]
        except ValueError as problem:
            raise ValueError(f"target {name}: {problem}") from None
    return {block.name: torch.stack([mean[block.name] for mean in means.values()]) for block in blocks}


def _solve(accumulators: Mapping, scorers: Sequence[Scorer], blocks: Sequence[Block], targets: list[str]) -> Directions:
    stacks: dict[str, Tensor] = {}
    details: dict[str, Any] = {}
    for block in blocks:
        solved = []
        for scorer in scorers:
            accumulator = accumulators[scorer.name, block.name]
            solved.append(accumulator.solve())
            details.setdefault(scorer.name, {})[block.name] = accumulator.details
        stacks[block.name] = torch.cat(solved)
    return Directions(tuple((s.name, t) for s in scorers for t in targets), stacks, details)
