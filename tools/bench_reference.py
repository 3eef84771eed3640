"""Our scores against a batch-of-one implementation of the published procedure: how much faster, and that they agree.

    python tools/bench_reference.py [--samples 1024] [--repeats 1]

The published code (HyperINF, DataInf) runs one sample at a time, forms dense gradients in dictionaries by parameter,
and does so for every method anew: a pass over the pool for the curvature and one for the scores. `published` below is
a plain twin of that procedure with the formulas that this project uses, so that the scores can be compared. `shared` is
the same loop as kindly as it can be written: one pass whose gradients are kept and serve all four methods.

Tiny VLM, projector + LoRA, samples of the embedded world's pool, one target, curvature fitted on all samples: TracIn,
DataInf, LiSSA (depth 10) and HyperINF (damping 10, for at 0.1 float32 alone moves the scores by a thousandth).
DataInf's damping is measured on 512 samples, the command's default.
Repetitions are interleaved; ratios are medians over repetitions.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.world.files import WorldSizes, write_world
from vlmsel.gradients import Block
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.models.subject import Subject
from vlmsel.scorers import DataInf, HyperINF, LiSSA, TracIn
from vlmsel.scoring.batches import Batching, seeded_part
from vlmsel.scoring.passes import FitPart, Passes

METHODS = ("TracIn", "DataInf", "LiSSA", "HyperINF")
SCORERS = (TracIn(), DataInf(), LiSSA(), HyperINF(damping=10.0))
PART = FitPart()  # all samples, and 512 of them for the damping of DataInf
Gradient = dict[str, Tensor]  # parameter name -> [rows, cols]


@dataclass(frozen=True)
class Setting:
    """The model, what of it counts, the pool and the target."""

    model: Subject
    blocks: Sequence[Block]
    pool: SampleDataset
    target: SampleDataset


# The published procedure


def one_gradient(setting: Setting, data: SampleDataset, position: int) -> Gradient:
    """Return a sample's gradient from a batch of one."""
    batch, module = setting.model.collate([data[position]]), setting.model.module
    shapes = {block.name: (block.rows, block.cols) for block in setting.blocks}
    chosen = {name: p for name, p in module.named_parameters() if name in shapes}
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    setting.model.losses(batch).sum().backward()
    zero = {name: torch.zeros(shape) for name, shape in shapes.items()}
    found = {n: zero[n] if p.grad is None else p.grad.clone().reshape(shapes[n]) for n, p in chosen.items()}
    for parameter in chosen.values():
        parameter.grad = None
        parameter.requires_grad_(False)
    return found


def gradients(setting: Setting, data: SampleDataset) -> list[Gradient]:
    """Return every sample's gradient, one at a time."""
    return [one_gradient(setting, data, position) for position in range(len(data))]


def precondition(method: str, v: Gradient, train: list[Gradient]) -> Gradient:
    """Return P v, block by block, sample by sample."""
    return {name: ONE_BLOCK[method](v[name], [g[name] for g in train]) for name in v}


def damping(train: list[Tensor], relative: float) -> float:
    """Return λ: relative to the mean squared gradient entry."""
    return relative * sum(float(g.square().sum()) for g in train) / len(train) / train[0].numel()


def measured(count: int) -> list[int]:
    """Return the samples that DataInf's damping is measured on."""
    return seeded_part(range(count), PART.scale, PART.seed + 1)


def datainf(v: Tensor, train: list[Tensor]) -> Tensor:
    """Swap mean and inverse (Sherman-Morrison)."""
    lam, total = damping([train[i] for i in measured(len(train))], 0.1), torch.zeros_like(v)
    if lam == 0:
        return total
    for g in train:
        total += (v * g).sum() / (lam + g.square().sum()) * g
    return (v - total / len(train)) / lam


def lissa(v: Tensor, train: list[Tensor]) -> Tensor:
    """Iterate ten steps of the scaled Neumann series."""
    lam = damping(train, 0.1)
    if lam == 0:
        return torch.zeros_like(v)
    scale = 1 / (lam * v.numel() / 0.1 + lam)
    r = scale * v
    for _ in range(10):
        product = torch.zeros_like(v)
        for g in train:
            product += (r * g).sum() * g
        r = scale * v + r - scale * (product / len(train) + lam * r)
    return r


def hyperinf(v: Tensor, train: list[Tensor]) -> Tensor:
    """Invert the generalised Fisher matrix on the block's long side."""
    wide = v.shape[1] >= v.shape[0]
    lam = damping(train, 10.0)
    if lam == 0:
        return torch.zeros_like(v)
    gram = sum((g.T @ g if wide else g @ g.T for g in train), torch.zeros(max(v.shape), max(v.shape)))
    inverse = torch.linalg.inv(gram / len(train) + lam * torch.eye(len(gram)))
    return v @ inverse if wide else inverse @ v


ONE_BLOCK: dict[str, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "TracIn": lambda v, train: v,
    "DataInf": datainf,
    "LiSSA": lissa,
    "HyperINF": hyperinf,
}


def mean_gradient(found: list[Gradient]) -> Gradient:
    """Average gradients."""
    return {name: sum((g[name] for g in found), torch.zeros(())) / len(found) for name in found[0]}


def influences(h: Gradient, train: list[Gradient]) -> Tensor:
    """Return -⟨h, g⟩ of every sample."""
    return torch.stack([-sum(((h[name] * g[name]).sum() for name in h), torch.zeros(())) for g in train])


def published(setting: Setting) -> Tensor:
    """Score with every method on its own: its target, its curvature pass, its score pass. [methods, n]"""
    rows = []
    for method in METHODS:
        v = mean_gradient(gradients(setting, setting.target))
        h = precondition(method, v, gradients(setting, setting.pool)) if method != "TracIn" else v
        rows.append(influences(h, gradients(setting, setting.pool)))
    return torch.stack(rows)


def shared(setting: Setting) -> Tensor:
    """Score from gradients that are computed once and kept. [methods, n]"""
    v, train = mean_gradient(gradients(setting, setting.target)), gradients(setting, setting.pool)
    return torch.stack([influences(precondition(method, v, train), train) for method in METHODS])


# Ours


def engine(setting: Setting) -> Tensor:
    """Score as `vlmsel score` does. [methods, n]"""
    targets = {"target": setting.target}
    passes = Passes.of(setting.model, setting.blocks, setting.pool, targets, Batching(), PART)
    with tempfile.TemporaryDirectory() as folder:
        found = passes.score(SCORERS, Path(folder))
    assert found is not None
    return found.scores[:, found.uids.argsort()]


def seconds(call: Callable[[Setting], Tensor], setting: Setting) -> tuple[float, Tensor]:
    """Time a call; return its result too."""
    start = time.perf_counter()
    result = call(setting)
    return time.perf_counter() - start, result


def main() -> None:
    """Print the ratios and how far the scores differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--target", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder, WorldSizes(0, given.samples, given.target, 0))
        model, reading = open_subject("tiny", "cpu"), Reading(folder / "images")
        model.module.eval()
        files = (folder / "pool.json", folder / "targets/vqav2.json")
        pool, target = (open_pool(model, file, reading).samples for file in files)
        setting = Setting(model, model.blocks("projector+lora"), pool, target)
        engine(setting)  # warm up
        rows = []
        for _ in range(given.repeats):
            ours, scores = seconds(engine, setting)
            theirs, expected = seconds(published, setting)
            kind, _ = seconds(shared, setting)
            rows.append((theirs / ours, kind / ours))
    for method, one, other in zip(METHODS, scores, expected, strict=True):
        worst = float((one - other).abs().max() / other.abs().max())
        print(f"{method:9} largest difference of scores {worst:.1e} of the largest score")
    print(f"{given.samples} samples, {given.target} target samples, {torch.get_num_threads()} threads")
    print(f"published procedure / ours: {statistics.median(row[0] for row in rows):.1f}x the time")
    print(f"one shared pass of batch size one / ours: {statistics.median(row[1] for row in rows):.1f}x the time")


if __name__ == "__main__":
    main()
