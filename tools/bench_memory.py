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
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from vlmsel.data.batches import Collator, Item, length_batches
from vlmsel.models.config import ALL_LINEAR, LoraSpec, VLMConfig
from vlmsel.models.vlm import VLM
from vlmsel.scorers import DataInf, HyperINF, LiSSA, TracIn
from vlmsel.scoring.batches import BatchPlan, seeded_part
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.pool_pass import score_pool
from vlmsel.scoring.source import ModelSource
from vlmsel.scoring.targets import TargetPlan, target_means

FIT = 256


@dataclass(frozen=True)
class Texts(Dataset[Item]):
    """Random texts of 8 to 24 tokens, each drawn anew from its position."""

    count: int

    def __len__(self) -> int:
        return self.count

    def length(self, position: int) -> int:
        """Return a text's length."""
        return 8 + position * 7919 % 17

    def __getitem__(self, position: int) -> Item:
        generator = torch.Generator().manual_seed(position)
        ids = torch.randint(3, 200, (self.length(position),), generator=generator).tolist()
        return Item(position, ids, [-100] * 4 + ids[4:])


def model() -> VLM:
    """A random 2-layer Llama of width 32 with LoRA on all linear layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    language = LlamaForCausalLM(config).requires_grad_(False)
    made = VLM(VLMConfig(None, "random", template="text"), None, nn.Sequential(), language)
    made.attach_lora(LoraSpec(r=4, alpha=8, targets=ALL_LINEAR))
    return made


def score(count: int) -> None:
    """Score a pool of `count` texts and print the peak resident memory in MiB."""
    torch.set_num_threads(1)
    texts, own = Texts(count), model()

    def plan(positions: list[int]) -> BatchPlan:
        groups = length_batches([texts.length(i) for i in positions], max_tokens=2048)
        return BatchPlan(texts, Collator(0), [[positions[i] for i in group] for group in groups])

    blocks, budget = own.blocks(), Budget()
    fit = ModelSource(own, blocks, plan(seeded_part(range(count), FIT, 0)), budget)
    aims = TargetPlan(("a", "b"), (), plan(list(range(128))), {position: position // 64 for position in range(128)})
    goal = ModelSource(own, blocks, aims.plan, budget)
    scorers = [TracIn(), DataInf(), LiSSA(batch="stream"), HyperINF()]
    with tempfile.TemporaryDirectory() as folder:
        pool = ModelSource(own, blocks, plan(list(range(count))), budget)
        targets = Targets(aims.names, lambda: target_means(aims, goal))
        found = score_pool(pool, FitSources(fit, fit), targets, scorers, Path(folder))
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
