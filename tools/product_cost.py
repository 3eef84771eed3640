"""Seconds and bytes of the preconditioned product P v against LoRA rank (HyperINF's Figures 6 and 7, Table 1).

    python tools/product_cost.py --out runs/product_cost [--ranks 1 2 4 8 16 32 64] [--size 512] [--samples 128]

One block lora_A [r, size] with random gradients, one target: gathering the statistic and solving are timed together,
bytes are those that the scorer tells the planner. Writes `product_cost.csv`, `.md` and `.png`. Scorers that refuse a
size (the FIM of a large block) have no row there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from solver_study import Row, markdown, write_csv

from vlmsel.gradients import Factor
from vlmsel.scorers import BlockTargets, DataInf, Exact, GradientScorer, HyperINF, LiSSA, TwoSided

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
}


def cost(scorer: GradientScorer, gradients: torch.Tensor, targets: torch.Tensor, batch: int = 32) -> Row:
    """Gather and solve; return seconds and bytes."""
    block = BlockTargets(targets, float(gradients.square().mean()))
    wait(gradients)
    begun = time.perf_counter()
    statistic = scorer.statistic(block)
    for part in gradients.split(batch) if statistic is not None else ():
        statistic.update(Factor.from_dense(part))
    if statistic is not None:
        statistic.spendable = True
    scorer.solve(statistic, targets)
    wait(gradients)
    seconds = time.perf_counter() - begun
    held = 0 if statistic is None else statistic.bytes(len(gradients))
    return {
        "seconds": seconds,
        "gathered MB": held / 1e6,
        "solving MB": scorer.solve_bytes(block, len(gradients)) / 1e6,
    }


def wait(on: torch.Tensor) -> None:
    if on.is_cuda:
        torch.cuda.synchronize()


def rows_of(given: argparse.Namespace) -> list[Row]:
    """Run every scorer at every rank; the least of the repetitions counts."""
    rows: list[Row] = []
    generator = torch.Generator(given.device).manual_seed(0)
    for rank in given.ranks:
        draw = torch.randn(given.samples + 1, rank, given.size, generator=generator, device=given.device) / 100
        for name, scorer in SCORERS.items():
            if name == "HyperINF (FIM)" and rank * given.size > MOST:
                continue
            runs = [cost(scorer, draw[1:], draw[:1]) for _ in range(given.repeats)]
            rows.append({"rank": rank, "scorer": name, **min(runs, key=lambda run: run["seconds"])})
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
        axes[1].loglog(
            ranks, [row["gathered MB"] + row["solving MB"] for row in own], marker=".", color=f"C{number}", label=name
        )
    for axis, title in zip(axes, ("seconds for a block", "MB held"), strict=True):
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
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = rows_of(given)
    write_csv(given.out / "product_cost.csv", rows)
    (given.out / "product_cost.md").write_text(markdown(rows), encoding="utf-8")
    picture(rows, given.out / "product_cost.png")


if __name__ == "__main__":
    main()
