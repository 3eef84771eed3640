"""From targets to preconditioned targets: h = P v for every scorer and target, from one curvature pass.

The stack of all h per block is what the score pass needs; column c belongs to `names[c] = (scorer, target)`.

Several processes deal the batches of every pass among them and merge what they gathered in the one that solves a block.
A statistic that depends on the order of the batches sees all of them in every process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlmsel import processes, runs
from vlmsel.gradients import Factor
from vlmsel.gradients.factors import wide
from vlmsel.scorers import BlockTargets, GradientScorer, Statistic
from vlmsel.scorers.base import Metric
from vlmsel.scorers.kronecker import Basis, TokenMoments
from vlmsel.scorers.normalise import divide_columns_
from vlmsel.scorers.statistics import SquareSum
from vlmsel.scoring.batches import dealt, progress_bar
from vlmsel.scoring.halving import free, out_of_memory
from vlmsel.scoring.memory import measure_memory, zeros_at
from vlmsel.scoring.memory_plan import Prefer, plan_curvature
from vlmsel.scoring.no_gradient import check_directions, check_targets
from vlmsel.scoring.progress import Progress
from vlmsel.scoring.solve import Gathered, Key, say_instead, solve_all, start_statistics
from vlmsel.scoring.source import Gradients, GradientSource, LeftOut
from vlmsel.scoring.targets import VIRTUAL, is_virtual
from vlmsel.scoring.virtual import EachTarget, Metrics, TargetSample, Virtual


@dataclass(frozen=True)
class Preconditioned:
    """Preconditioned targets.

    Attributes:
        names: scorer and target of each column.
        stacks: per block, h of all columns. [columns, rows, cols]
        details: numbers that scorers recorded, by scorer and block.
        normalised: the columns that have norm 1 over all blocks, and whose scores are divided by the samples' norms.
        left_out: fit samples that were left out, and why.
        virtual: how the target samples are made of the columns that stand for them, where they are targets.
        metrics: with it, the norms of the scorers that have another than the plain one.
        inner: with it, ⟨P w, w'⟩ of the virtual targets, for scorers whose norm is their own. [r, r]
    """

    names: tuple[tuple[str, str], ...]
    stacks: dict[str, Tensor]
    details: dict[str, Any]
    normalised: tuple[bool, ...] = ()
    left_out: LeftOut = field(default_factory=dict)
    virtual: Virtual | None = None
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    inner: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def norms(self) -> list[Metrics]:
        """The norms that are taken of samples: the plain one, then those of `metrics`; none without `virtual`."""
        return [] if self.virtual is None else [{}, *self.metrics.values()]

    def save(self, path: Path) -> None:
        about = {name: getattr(self, name) for name in ("names", "details", "normalised", "left_out")}
        tensors = {**self.stacks, **{f"inner/{scorer}": own for scorer, own in self.inner.items()}}
        if self.virtual is not None:
            about["virtual"] = {"samples": self.virtual.samples, "share": self.virtual.share}
            tensors |= {"mixing": self.virtual.mixing, "weights": self.virtual.weights}
        about["metrics"] = {
            scorer: {block: own.scale for block, own in one.items()} for scorer, one in self.metrics.items()
        }
        about["lower"] = [[scorer, block] for scorer, one in self.metrics.items() for block in one if one[block].lower]
        for scorer, one in self.metrics.items():
            for block, own in one.items():
                sides = {"rows": own.rows, "cols": own.cols, "weights": own.weights}
                tensors |= {f"{side}/{scorer}/{block}": x for side, x in sides.items() if x is not None}
        texts = {key: json.dumps(value) for key, value in about.items()}
        with runs.atomic_path(path) as part:
            save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, part, metadata=texts)

    @classmethod
    def load(cls, path: Path) -> Preconditioned:
        with safe_open(path, framework="pt") as file:
            about = {key: json.loads(text) for key, text in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        inner = {name.removeprefix("inner/"): tensors.pop(name) for name in [*tensors] if name.startswith("inner/")}
        names = tuple((scorer, target) for scorer, target in about["names"])
        left_out = {int(uid): reason for uid, reason in about["left_out"].items()}
        metrics = {
            scorer: {
                block: Metric(
                    tensors.pop(f"rows/{scorer}/{block}", None),
                    tensors.pop(f"cols/{scorer}/{block}", None),
                    scale,
                    tensors.pop(f"weights/{scorer}/{block}", None),
                    [scorer, block] in about.get("lower", []),  # earlier versions multiplied with all of it
                )
                for block, scale in one.items()
            }
            for scorer, one in about["metrics"].items()
        }
        virtual = None
        if "virtual" in about:
            samples = tuple(TargetSample(*one) for one in about["virtual"]["samples"])
            virtual = Virtual(samples, tensors.pop("mixing"), tensors.pop("weights"), about["virtual"]["share"])
        return cls(names, tensors, about["details"], tuple(about["normalised"]), left_out, virtual, metrics, inner)


@dataclass(frozen=True)
class Targets:
    """What is scored for.

    Attributes:
        names: what the targets are called.
        v: gives the mean gradient of each, when it is needed. [targets, rows, cols] per block
        each: their samples, where each of them is a target too.
    """

    names: tuple[str, ...]
    v: Callable[[], Mapping[str, Tensor]]
    each: EachTarget | None = None

    def means(self) -> Mapping[str, Tensor]:
        """Return v.

        Raises:
            ValueError: a target has no gradient on any block.
        """
        v = self.v()
        check_targets(self.names, v)
        return v


@dataclass(frozen=True)
class FitSources:
    """The samples that P is made from.

    Attributes:
        curvature: those whose gradients are gathered.
        damping: those that the mean squared gradient entry is measured on, for scorers that need it before.
    """

    curvature: GradientSource
    damping: GradientSource


def precondition(
    targets: Targets,
    fit: FitSources,
    scorers: Sequence[GradientScorer],
    folder: Path | None = None,
    place: Prefer = "auto",
) -> Preconditioned:
    """Run the curvature pass and solve every scorer on every block.

    Args:
        targets, fit: what is scored for, and the samples that P is made from.
        scorers: all of them.
        folder: keeps how far the pass has come, and what has no room in memory; without it nothing is kept, and
            everything is gathered on the device.
        place: where curvature is gathered.

    Raises:
        ValueError: what is gathered has no room, damping cannot be measured, or a target, or the fit samples where
            it has one, have no gradient.
    """
    source, v, names, virtual = fit.curvature, targets.means(), targets.names, None
    if targets.each is not None:
        virtual = targets.each.look()
        more = targets.each.gradients(virtual)
        v = {name: torch.cat([own, more[name].to(own)]) for name, own in v.items()}
        names += tuple(f"{VIRTUAL}{number}" for number in range(len(virtual.weights)))
    squares, left_out = _mean_squares(fit.damping, scorers)
    bases = _bases(source, scorers, v)
    blocks = {name: BlockTargets(wide(own), squares.get(name), bases.get(name), name) for name, own in v.items()}
    gathered = start_statistics(scorers, blocks)
    if folder is not None:
        _place(source, scorers, gathered, len(names), virtual is not None, folder, place)
    ordered = {key: one for key, one in gathered.statistics.items() if one.ordered and processes.count() > 1}
    shared = {key: one for key, one in gathered.statistics.items() if key not in ordered}
    if ordered:
        left_out |= _gather("curvature pass", source, range(len(source.sizes)), ordered, Progress(folder, "ordered"))
    if shared:
        left_out |= _gather("curvature pass", source, dealt(len(source.sizes)), shared, Progress(folder, "curvature"))
    for reasons in processes.gather(left_out):
        left_out.update(reasons)
    own = {name: block.targets for name, block in blocks.items()}
    stacks, details, metrics = _solve(scorers, gathered, own, virtual is not None)
    columns = tuple((scorer.name, target) for scorer in scorers for target in names)
    check_directions(columns, stacks, v)
    normalised = tuple(scorer.normalised and not is_virtual(target) for scorer in scorers for target in names)
    divide_columns_(stacks, normalised)
    inner = {} if virtual is None else _inner(scorers, stacks, v, len(virtual.weights))
    return Preconditioned(columns, stacks, details, normalised, left_out, virtual, metrics, inner)


def _inner(
    scorers: Sequence[GradientScorer], stacks: Mapping[str, Tensor], v: Mapping[str, Tensor], last: int
) -> dict[str, Tensor]:
    """Return ⟨P w, w'⟩ of the `last` targets, for scorers whose norm is their own. [last, last] float64"""
    found = {}
    for number, scorer in enumerate(scorers):
        if scorer.own_norm:
            pairs = ((stacks[name].chunk(len(scorers))[number][-last:], own[-last:]) for name, own in v.items())
            parts = [h.flatten(1).double() @ w.flatten(1).double().T for h, w in pairs]
            found[scorer.name] = torch.stack(parts).sum(0).cpu()
    return found


def _mean_squares(source: GradientSource, scorers: Sequence[GradientScorer]) -> tuple[dict[str, float], LeftOut]:
    """Return, per block, the mean of the squared gradient entries over samples: what damping is relative to.

    Nothing where no scorer needs it."""
    if not any(scorer.needs_mean_square for scorer in scorers):
        return {}, {}
    no_targets = {name: torch.zeros(0, *shape, device=source.device) for name, shape in source.shapes().items()}
    sums: dict[Key, SquareSum] = {(name, "squares"): SquareSum(BlockTargets(v)) for name, v in no_targets.items()}
    left_out = _gather("damping", source, dealt(len(source.sizes)), sums, Progress(None, "damping"))
    everyone = processes.gather({name: (float(one.squares), one.count) for (name, _), one in sums.items()})
    means = {}
    for block in source.blocks:
        squares, samples = map(sum, zip(*(one[block.name] for one in everyone), strict=True))
        if not samples:
            raise ValueError("no sample with a finite gradient to measure the damping on")
        means[block.name] = squares / (samples * block.rows * block.cols)
    return means, left_out


def _bases(source: GradientSource, scorers: Sequence[GradientScorer], v: Mapping[str, Tensor]) -> dict[str, Basis]:
    """Return, per block, the eigenbasis of its token moments over the fit samples, from a pass of its own.

    Nothing where no scorer needs it."""
    if not any(scorer.needs_basis for scorer in scorers):
        return {}
    found: dict[Key, TokenMoments] = {}
    for name, own in v.items():
        found[name, "moments"] = TokenMoments(BlockTargets(wide(own[:0])))
    _gather("eigenbases", source, dealt(len(source.sizes)), found, Progress(None, "eigenbases"))
    bases = {}
    for (name, _), one in found.items():
        for tensor in one.tensors().values():
            processes.add_up(tensor)
        bases[name] = one.basis()
        for side in bases[name]:
            processes.share(side, 0)  # eigenvectors found elsewhere may differ in their signs
    return bases


def _place(
    source: GradientSource, scorers: Sequence[GradientScorer], gathered: Gathered, targets: int, norms: bool,
    folder: Path, prefer: Prefer,
) -> None:  # fmt: skip
    """Decide where statistics gather, now that the passes before have shown what a batch takes, and say so."""
    samples = -(-sum(source.sizes) // processes.count())
    memory = measure_memory(source.device, folder, processes.local_count())
    plan = plan_curvature(scorers, source.shapes(), targets, samples, memory, prefer, norms)
    if processes.is_main():
        print(plan.describe())
    zeros = zeros_at(plan.place, source.device, folder)
    for statistic in gathered.statistics.values():
        if statistic.movable:
            statistic.zeros = zeros


def _gather(
    what: str, source: GradientSource, numbers: Sequence[int], statistics: Mapping[Key, Statistic], progress: Progress
) -> LeftOut:
    """Run a pass over these batches, or what of it is not yet done; return the samples left out."""
    done, left_out = progress.load(statistics, source.digest(numbers))
    sizes = [source.sizes[number] for number in numbers]
    tokens = any(statistic.tokens for statistic in statistics.values())
    with source.gradients(tokens) as read, progress_bar(what, sizes, sum(sizes[:done])) as bar:
        for seen, pieces in enumerate(read(numbers[done:]), start=done + 1):
            for found in pieces:
                bar.update(len(found.uids))
                kept, bad = found.clean()
                left_out |= bad
                for (block, _), statistic in statistics.items():
                    factor = kept.factors[block]
                    take_in(statistic, kept, factor if statistic.tokens or not tokens else factor.compact())
                del kept, found
            progress.note(seen, statistics, left_out)
            if all(statistic.done for statistic in statistics.values()):
                break
    progress.finish(len(numbers), statistics, left_out)
    return left_out


def take_in(statistic: Statistic, found: Gradients, factor: Factor) -> None:
    """Let a statistic take in a block's gradients: batch by batch, as they were run, where it depends on batches."""
    if not statistic.ordered or len(found.sizes) == 1:
        feed(statistic, factor)
        return
    for end, size in zip(accumulate(found.sizes), found.sizes, strict=True):
        if size:
            feed(statistic, factor.select(slice(end - size, end)))


def feed(statistic: Statistic, factor: Factor) -> None:
    """Let a statistic take in a batch, in halves where that does not fit into memory."""
    try:
        statistic.update(factor)
        return
    except (RuntimeError, MemoryError) as problem:
        if not out_of_memory(problem) or factor.samples < 2:
            raise
    free()
    middle = factor.samples // 2
    feed(statistic, factor.select(slice(0, middle)))
    feed(statistic, factor.select(slice(middle, None)))


def _solve(
    scorers: Sequence[GradientScorer], gathered: Gathered, v: Mapping[str, Tensor], norms: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Metrics]]:
    """Solve every block in the process that it is dealt to, and share the solutions; uses the statistics up.

    With `norms` the scorers' own norms are made too, where they are not the plain one."""
    sizes = sorted(v, key=lambda name: -max(v[name].shape[1:]))
    owners = {name: number % processes.count() for number, name in enumerate(sizes)}
    for key in list(gathered.statistics):
        owner, statistic = owners[key[0]], gathered.statistics[key]
        if not statistic.ordered:
            processes.merge_into(owner, statistic.state, statistic.merge)
        if owner != processes.rank():
            del gathered.statistics[key]  # another process solves it
        del statistic
    own = {name: v[name] for name in v if owners[name] == processes.rank()}
    found, metrics = {}, {}
    for scorer, name, solved, metric in solve_all(scorers, gathered, own, norms):
        found[scorer, name], metrics[scorer, name] = solved, metric
    stacks = {}
    for name in v:
        parts = [found[scorer.name, name].h if name in own else torch.empty_like(v[name]) for scorer in scorers]
        stacks[name] = torch.cat(parts)
        processes.share(stacks[name], owners[name])
    norms_of = _share_metrics(metrics, [(s.name, name) for s in scorers if norms and s.own_norm for name in v], owners)
    numbers = {key: solved.details for key, solved in found.items()}
    everyone = {key: each for one in processes.gather(numbers) for key, each in one.items()}
    told = {scorer.name: {name: everyone[scorer.name, name] for name in v} for scorer in scorers}
    for name in told if processes.is_main() else ():
        say_instead(name, told[name])
    return stacks, told, norms_of


def _share_metrics(
    own: Mapping[tuple[str, str], Metric | None], wanted: Sequence[tuple[str, str]], owners: Mapping[str, int]
) -> dict[str, Metrics]:
    """Give every process all metrics by scorer and block, but for those that are the plain norm on every block."""
    mine = {key: own[key] for key in wanted if owners[key[1]] == processes.rank()}
    if processes.count() > 1:
        parts = processes.gather({key: None if one is None else one.to("cpu") for key, one in mine.items()})
        mine = {key: metric for part in parts for key, metric in part.items()}
    found: dict[str, dict[str, Metric]] = {}
    for scorer, block in wanted:
        metric = mine[scorer, block]
        assert metric is not None
        found.setdefault(scorer, {})[block] = metric
    return {scorer: one for scorer, one in found.items() if not all(metric.plain for metric in one.values())}
