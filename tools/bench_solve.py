"""Solving HyperINF's matrices by Schulz's iteration against Cholesky, at the size of a model's LoRA blocks.

    python tools/bench_solve.py [--size 4096] [--blocks 128] [--rank 64] [--targets 4] [--damping 0.1]

G is the mean of g gᵀ over samples whose gradients [rank, size] have singular values that fall as k^-`--decay`. Printed
are the seconds for all blocks by either solver, their ratio, Schulz's steps, the condition number's bound, and how far
the two solutions and float32 from float64 lie apart.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from vlmsel.gradients import Factor
from vlmsel.scorers import BlockTargets, HyperINF


def gradients(samples: int, rank: int, size: int, decay: float, seed: int, device: str) -> Tensor:
    """Draw gradients [samples, rank, size] with a falling spectrum."""
    generator = torch.Generator(device).manual_seed(seed)
    scale = torch.arange(1, size + 1, device=device, dtype=torch.float32) ** -decay
    return torch.randn(samples, rank, size, generator=generator, device=device) * scale


def solve(scorer: HyperINF, fit: Tensor, targets: Tensor) -> tuple[float, Tensor, dict[str, Any]]:
    """Return the seconds of a block's solution, the solution and its details."""
    statistic = scorer.statistic(BlockTargets(targets))
    statistic.update(Factor.from_dense(fit))
    statistic.spendable = True  # as in a run, by the last scorer that needs it
    wait(fit)
    start = time.perf_counter()
    solved = scorer.solve(statistic, targets)
    wait(fit)
    return time.perf_counter() - start, solved.h, solved.details


def wait(on: Tensor) -> None:
    if on.is_cuda:
        torch.cuda.synchronize()


def apart(one: Tensor, other: Tensor) -> float:
    """Return the relative distance of two solutions."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--damping", type=float, default=0.1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    ways = {name: HyperINF(given.damping, solver=name) for name in ("schulz", "cholesky")}
    exact = HyperINF(given.damping, solver="cholesky", dtype="float64")
    times: dict[str, list[float]] = {name: [] for name in ways}
    gaps: dict[str, list[float]] = {"schulz from cholesky": [], "schulz from float64": [], "cholesky from float64": []}
    for block in range(-1, given.blocks):  # the first warms up
        fit = gradients(given.samples, given.rank, given.size, given.decay, max(block, 0), given.device)
        targets = fit[: given.targets].clone()
        found = {name: solve(scorer, fit, targets) for name, scorer in ways.items()}
        if block < 0:
            continue
        for name, (seconds, _, _) in found.items():
            times[name].append(seconds)
        if block < 2:
            truth = solve(exact, fit, targets)[1]
            gaps["schulz from cholesky"].append(apart(found["schulz"][1], found["cholesky"][1]))
            gaps["schulz from float64"].append(apart(found["schulz"][1], truth))
            gaps["cholesky from float64"].append(apart(found["cholesky"][1], truth))
            details = found["schulz"][2]
    card = torch.cuda.get_device_name() if given.device != "cpu" else "CPU"
    total = {name: sum(each) for name, each in times.items()}
    steps, bound = len(details["residuals"]) - 1, details["bound"] / details["damping"]
    print(f"{given.blocks} blocks of {given.size}² on {card}: " + ", ".join(f"{n} {t:.2f} s" for n, t in total.items()))
    print(f"  ratio {total['schulz'] / total['cholesky']:.1f}, {steps} steps, condition at most {bound:.2g}")
    print("  solver at the end: " + details["solver"] + "; " + ", ".join(f"{n} {max(v):.1e}" for n, v in gaps.items()))


if __name__ == "__main__":
    main()
