"""From targets to preconditioned targets: h = P v for every scorer and target, from one curvature pass.

The stack of all h per block is what the score pass needs; column c belongs to `names[c] = (scorer, target)`.

Several processes deal the batches of every pass among them and add up what they gathered; each then solves its share of
the blocks. A scorer whose P depends on the order of the batches sees all of them in every process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmsel import processes, runs
from vlmsel.gradients import Block
from vlmsel.scorers import Scorer
from vlmsel.scorers.normalise import divide_columns_, normalised_columns
from vlmsel.scorers.statistics import KeptGradients
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.memory import measure_memory
from vlmsel.scoring.memory_plan import Prefer, plan_curvature
from vlmsel.scoring.progress import Accumulators, Progress
from vlmsel.scoring.score_pass import (
    Bad,
    Objective,
    backward,
    curvature_pass,
    gradient_scorers,
    square_sums,
)
from vlmsel.scoring.solve import leaders, solve_all
from vlmsel.scoring.targets import Targets, target_means


@dataclass(frozen=True)
class Directions:
    """Preconditioned targets: per block `[columns, rows, cols]`, and which scorer and target each column is.

    `normalised` marks the columns that have norm 1 over all blocks and whose scores are divided by the samples' norms.
    """

    names: tuple[tuple[str, str], ...]
    stacks: dict[str, Tensor]
    details: dict[str, Any]
    normalised: tuple[bool, ...] = ()

    def save(self, path: Path) -> None:
        about = {"names": self.names, "details": self.details, "normalised": self.normalised}
        with runs.atomic_path(path) as part:
            save_file({k: v.contiguous().cpu() for k, v in self.stacks.items()}, part, metadata=_texts(about))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Directions:
        with safe_open(path, framework="pt", device=str(device)) as file:
            about = {key: json.loads(text) for key, text in file.metadata().items()}
            stacks = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        names = tuple((scorer, target) for scorer, target in about["names"])
        return cls(names, stacks, about["details"], tuple(about.get("normalised", ())))


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in values.items()}


@dataclass(frozen=True)
class Streams:
    """What the passes read: batches of the fit samples, of the samples that damping is measured on, and of the
    targets: one plan per name, or one of all together."""

    fit: BatchPlan
    scale: BatchPlan
    targets: Targets | Mapping[str, BatchPlan]


@dataclass(frozen=True)
class Pass:
    """What every pass needs."""

    model: nn.Module
    objective: Objective
    blocks: Sequence[Block]
    bad: Bad
    budget: Budget
    place: Prefer = "auto"  # where curvature is gathered


def find_directions(job: Pass, streams: Streams, scorers: Sequence[Scorer], folder: Path) -> Directions:
    """Run the target passes and the curvature pass and solve every accumulator; `folder` keeps the progress.

    Raises:
        ValueError: a target without usable samples, or scorers that would not fit into memory.
    """
    scorers = gradient_scorers(scorers)
    targets = _targets(job, streams)
    measured = any(scorer.needs_mean_square for scorer in scorers)
    squares = _mean_squares(job, streams.scale) if measured else {}
    led = leaders(scorers)
    accumulators = {
        (scorer.name, block.name): scorer.accumulator(targets[block.name], squares.get(block.name))
        for scorer in scorers
        if led[scorer.name] == scorer.name
        for block in job.blocks
    }
    _place(job, streams, scorers, accumulators, folder)
    _accumulate(job, streams.fit, scorers, accumulators, folder)
    for reasons in processes.gather(job.bad.reasons):
        job.bad.reasons.update(reasons)
    return _solve(accumulators, scorers, job.blocks, list(streams.targets))


# Targets and damping


def _targets(job: Pass, streams: Streams) -> dict[str, Tensor]:
    """Return the mean gradients of all targets, [targets, rows, cols] per block."""
    with backward(job.model, job.objective, job.blocks, job.budget) as run:
        return target_means(Targets.of(streams.targets), run, job.blocks)


def _mean_squares(job: Pass, plan: BatchPlan) -> dict[str, float]:
    """Return, per block, the mean of the squared gradient entries over samples: what damping is relative to.

    Raises:
        ValueError: there is no sample with a finite gradient.
    """
    with backward(job.model, job.objective, job.blocks, job.budget) as run:
        sums, seen = square_sums(plan.dealt().shown("damping"), run, job.blocks, job.bad)
    everyone = processes.gather((sums, seen))
    count = sum(seen for _, seen in everyone)
    if not count:
        raise ValueError("no sample with a finite gradient to measure the damping on")
    total = {block.name: sum(one[block.name] for one, _ in everyone) for block in job.blocks}
    return {block.name: total[block.name] / (count * block.rows * block.cols) for block in job.blocks}


# Curvature


def _place(job: Pass, streams: Streams, scorers: Sequence[Scorer], accumulators: Accumulators, folder: Path) -> None:
    """Decide where the accumulators gather, now that the passes before have shown what a batch takes, and say so.

    Raises:
        ValueError: there is no room; says what is needed, what there is, and what would fit.
    """
    shapes = {block.name: (block.rows, block.cols) for block in job.blocks}
    device = next(job.model.parameters()).device
    samples = -(-sum(streams.fit.sizes) // processes.count())
    memory = measure_memory(device, folder, processes.local_count())
    plan = plan_curvature(scorers, shapes, len(streams.targets), samples, memory, job.place)
    if processes.is_main():
        print(plan.describe())
    zeros = plan.zeros(device, folder)
    for accumulator in accumulators.values():
        accumulator.place(zeros)


def _accumulate(
    job: Pass, plan: BatchPlan, scorers: Sequence[Scorer], accumulators: Accumulators, folder: Path
) -> None:
    """Run the curvature pass, or what of it is not yet done, and merge what the processes gathered."""
    several = processes.count() > 1
    fitted = {scorer.name: scorer.depends_on_batches and several for scorer in scorers if scorer.needs_fit}
    alone = {key: one for key, one in accumulators.items() if fitted.get(key[0]) is True}
    dealt = {key: one for key, one in accumulators.items() if fitted.get(key[0]) is False}
    if alone:
        _run_pass(job, plan, alone, folder, "ordered")
    if dealt:
        _run_pass(job, plan.dealt(), dealt, folder, "curvature")
        for accumulator in dealt.values():
            _merge(accumulator)


def _run_pass(job: Pass, plan: BatchPlan, accumulators: Accumulators, folder: Path, name: str) -> None:
    progress = Progress(folder, name, accumulators, job.bad, plan)
    done = progress.load()
    with backward(job.model, job.objective, job.blocks, job.budget) as run:
        batches = plan.shown("curvature pass", done)
        for seen, _ in enumerate(curvature_pass(batches, run, accumulators, job.bad), start=done + 1):
            progress.note(seen)
            if all(accumulator.done for accumulator in accumulators.values()):
                break
    progress.finish(len(plan.groups))


def _merge(accumulator: Any) -> None:
    """Add up what all processes' accumulators of one kind gathered: state tensors are sums, or samples kept."""
    if processes.count() == 1:
        return
    state = accumulator.state()
    if isinstance(accumulator, KeptGradients):
        everyone = processes.gather({key: tensor.cpu() for key, tensor in state.items()})
        state = {key: torch.cat([one[key] for one in everyone]) for key in state}
    else:
        for tensor in state.values():
            processes.add_up(tensor)
    accumulator.load_state(state)


def _solve(
    accumulators: dict[tuple[str, str], Any], scorers: Sequence[Scorer], blocks: Sequence[Block], targets: list[str]
) -> Directions:
    """Solve every block, each in the process that it is dealt to, and share the solutions; uses the accumulators up."""
    sizes = sorted(blocks, key=lambda block: -max(block.rows, block.cols))
    owners = {block.name: number % processes.count() for number, block in enumerate(sizes)}
    own = [block.name for block in blocks if owners[block.name] == processes.rank()]
    like = {block.name: accumulators[scorers[0].name, block.name].targets for block in blocks}
    for key in [key for key in accumulators if key[1] not in own]:
        del accumulators[key]  # what another process solves
    solved: dict[tuple[str, str], Tensor] = {}
    found: dict[tuple[str, str], Any] = {}
    for key, h, numbers in solve_all(scorers, accumulators, own):
        solved[key], found[key] = h, numbers
    stacks = {}
    for name in like:
        if name in own:
            stacks[name] = torch.cat([solved.pop((scorer.name, name)) for scorer in scorers])
        else:
            stacks[name] = torch.cat([torch.empty_like(like[name])] * len(scorers))
        processes.share(stacks[name], owners[name])
    everyone = {key: each for one in processes.gather(found) for key, each in one.items()}
    details = {s.name: {block.name: everyone[s.name, block.name] for block in blocks} for s in scorers}
    normalised = normalised_columns(scorers, len(targets))
    divide_columns_(stacks, normalised)
    return Directions(tuple((s.name, t) for s in scorers for t in targets), stacks, details, normalised)
