"""Peak resident memory of scoring over a small and a large pool: nothing per-sample is kept but the scores.

    python tools/bench_memory.py [--small 1000] [--large 20000]

Each pool is scored in a process of its own by the library calls behind `vlmsel score` (targets, curvature on a seeded
256 samples, score pass; TracIn, DataInf, LiSSA as a stream, HyperINF; two targets) with a 2-layer Llama and LoRA; the
ratio of their peaks is printed. Samples are made when they are read, so that the pool itself takes no memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from plain_text import PlainText, adapted, llama
from torch.utils.data import Dataset

from vlmsel.data.batches import Item
from vlmsel.gradients import select_blocks
from vlmsel.models.config import ALL_LINEAR
from vlmsel.scorers import DataInf, HyperINF, LiSSA, TracIn
from vlmsel.scoring.batches import Batching, seeded_part
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.pool_pass import score_pool
from vlmsel.scoring.source import ModelSource
from vlmsel.scoring.targets import TargetPlan, target_means

FIT = 256


@dataclass(frozen=True)
class Texts(Dataset[Item]):
    """Random texts of 8 to 24 tokens, each drawn anew from its number; the first is number `start`."""

    count: int
    start: int = 0

    def __len__(self) -> int:
        return self.count

    def usable(self) -> list[int]:
        """Return all positions."""
        return list(range(self.count))

    def lengths(self) -> list[int]:
        """Return the texts' lengths."""
        return [8 + number * 7919 % 17 for number in range(self.start, self.start + self.count)]

    def __getitem__(self, position: int) -> Item:
        number = self.start + position
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(3, 200, (8 + number * 7919 % 17,), generator=generator).tolist()
        return Item(number, ids, [-100] * 4 + ids[4:])


def score(count: int) -> None:
    """Score a pool of `count` texts and print the peak resident memory in MiB."""
    torch.set_num_threads(1)
    texts, batching, budget = Texts(count), Batching(2048), Budget()
    subject = PlainText(adapted(llama(2, 32, heads=2, words=200), 4, ALL_LINEAR).eval())
    blocks = select_blocks(subject.module, "lora")
    goals = TargetPlan.of(subject, {"a": Texts(64), "b": Texts(64, 64)}, batching)

    def source(positions: Sequence[int] | None = None) -> ModelSource:
        return ModelSource(subject, blocks, batching.plan(subject, texts, positions), budget)

    fit, goal = source(seeded_part(range(count), FIT, 0)), ModelSource(subject, blocks, goals.plan, budget)
    targets = Targets(goals.names, lambda: target_means(goals, goal))
    scorers = [TracIn(), DataInf(), LiSSA(batch="stream"), HyperINF()]
    with tempfile.TemporaryDirectory() as folder:
        found = score_pool(source(), FitSources(fit, fit), targets, scorers, Path(folder))
    assert found is not None and found.scores.shape == (8, count)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f}")


def main() -> None:
    """Print the two peaks and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=20000)
    parser.add_argument("--score", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.score:
        score(given.score)
        return
    peaks = []
    for count in (given.small, given.large):
        call = [sys.executable, __file__, "--score", str(count)]
        out = subprocess.run(call, check=True, capture_output=True, text=True).stdout
        peaks.append(float(out.rpartition("peak ")[2]))
        print(f"{count} samples: peak resident memory {peaks[-1]:.0f} MiB")
    print(f"ratio: {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
