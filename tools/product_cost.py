"""Seconds and bytes of the preconditioned product P v against LoRA rank (HyperINF's Figures 6 and 7, Table 1).

    python tools/product_cost.py --out runs/product_cost [--ranks 1 2 4 8 16 32 64] [--size 512] [--samples 128]

One block lora_A [r, size] with gradients of 32 random tokens a sample, one target: gathering the statistic, by EKFAC in
two passes, and solving are timed together, in processor seconds on a CPU. Bytes are those that the scorer tells the
planner and, measured in a run of its own, the most that were taken at a time beside the gradients. KFAC and EKFAC look
at tokens, the others get formed gradients. Writes `product_cost.csv`, `.md` and `.png`. Scorers that refuse a size (the
FIM of a large block) have no row there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from matplotlib.figure import Figure
from solver_study import Row, markdown, write_csv
from torch.profiler import ProfilerActivity, profile

from vlmsel.gradients import DenseFactor, Factor, OuterFactor
from vlmsel.scorers import (
    EKFAC,
    KFAC,
    BlockTargets,
    DataInf,
    Exact,
    GradientScorer,
    HyperINF,
    LiSSA,
    Statistic,
    TwoSided,
)
from vlmsel.scorers.kronecker import TokenMoments

TOKENS = 32
MOST = 1024  # entries of a block up to which the FIM is inverted
SCORERS: dict[str, GradientScorer] = {
    "HyperINF (Schulz)": HyperINF(),
    "HyperINF (Cholesky)": HyperINF(solver="cholesky"),
    "HyperINF (short side)": HyperINF(side="short"),
    "HyperINF (FIM)": HyperINF(curvature="fim"),
    "DataInf": DataInf(),
    "LiSSA (depth 10)": LiSSA(),
    "Exact": Exact(),
    "TwoSided": TwoSided(),
    "KFAC": KFAC(),
    "EKFAC": EKFAC(),
}


def solved(scorer: GradientScorer, parts: Sequence[Factor], block: BlockTargets) -> Statistic:
    """Gather and solve; return what was gathered."""
    if scorer.needs_basis:
        moments = TokenMoments(block)
        for part in parts:
            moments.update(part)
        block = replace(block, basis=moments.basis())
    statistic = scorer.statistic(block)
    assert statistic is not None
    for part in parts:
        statistic.update(part)
    statistic.spendable = True
    scorer.solve(statistic, block.targets)
    return statistic


def cost(scorer: GradientScorer, drawn: OuterFactor, targets: torch.Tensor, repeats: int, batch: int = 32) -> Row:
    """Gather and solve; return the least seconds of some repetitions, and bytes."""
    whole = drawn if isinstance(scorer, KFAC | EKFAC) else DenseFactor(drawn.dense())
    parts = [whole.select(slice(at, at + batch)) for at in range(0, drawn.samples, batch)]
    block = BlockTargets(targets, float(drawn.sq_norm().sum()) / (drawn.samples * targets[0].numel()))
    seconds = []
    for _ in range(repeats):
        wait(targets)
        begun = now(targets)
        statistic = solved(scorer, parts, block)
        wait(targets)
        seconds.append(now(targets) - begun)
    return {
        "seconds": min(seconds),
        "gathered MB": statistic.bytes(drawn.samples) / 1e6,
        "solving MB": scorer.solve_bytes(block, drawn.samples) / 1e6,
        "measured MB": peak(partial(solved, scorer, parts, block), targets) / 1e6,
    }


def now(on: torch.Tensor) -> float:
    return time.perf_counter() if on.is_cuda else time.process_time()


def peak(call: Callable[[], object], on: torch.Tensor) -> int:
    """Return the most bytes that a call takes beyond what was there."""
    if on.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events if event.name() == "[memory]"), initial=0))


def wait(on: torch.Tensor) -> None:
    if on.is_cuda:
        torch.cuda.synchronize()


def rows_of(given: argparse.Namespace) -> list[Row]:
    """Run every scorer at every rank."""
    rows: list[Row] = []
    generator = torch.Generator(given.device).manual_seed(0)
    for rank in given.ranks:
        left, right = (
            torch.randn(given.samples + 1, TOKENS, side, generator=generator, device=given.device) / 10
            for side in (rank, given.size)
        )
        drawn, target = OuterFactor(left[1:], right[1:]), OuterFactor(left[:1], right[:1]).dense()
        for name, scorer in SCORERS.items():
            if name == "HyperINF (FIM)" and rank * given.size > MOST:
                continue
            rows.append({"rank": rank, "scorer": name, **cost(scorer, drawn, target, given.repeats)})
        print(f"rank {rank}", flush=True)
    return rows


def picture(rows: list[Row], path: Path) -> None:
    """Draw seconds and bytes against rank."""
    figure = Figure(figsize=(10, 4))
    axes = figure.subplots(1, 2)
    for number, name in enumerate(SCORERS):
        own = [row for row in rows if row["scorer"] == name]
        ranks = [row["rank"] for row in own]
        axes[0].loglog(ranks, [row["seconds"] for row in own], marker=".", color=f"C{number}", label=name)
        axes[1].loglog(ranks, [row["measured MB"] for row in own], marker=".", color=f"C{number}", label=name)
    for axis, title in zip(axes, ("seconds for a block", "MB taken at most"), strict=True):
        axis.set(xlabel="LoRA rank", title=title)
        axis.grid(alpha=0.3)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = rows_of(given)
    write_csv(given.out / "product_cost.csv", rows)
    (given.out / "product_cost.md").write_text(markdown(rows), encoding="utf-8")
    picture(rows, given.out / "product_cost.png")


if __name__ == "__main__":
    main()
