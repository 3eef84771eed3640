"""Solvers under test: how fast each way to M⁻¹v converges, and what error and time it takes.

    python tools/solver_study.py convergence --out runs/convergence [--dims 128 512] [--samples 200 12800]
    python tools/solver_study.py inversion --out runs/inversion [--dims 16 64 256 1024] [--seeds 3]

`convergence` writes the relative error of M⁻¹v after every iteration, in float64 (`curves.csv`, a picture per d, errors
after 20 in `curves.md`), and how many steps Schulz's iteration takes to 1e-5 in float32 and 1e-10 in float64
(`schulz.csv`, `schulz.md`).
`inversion` writes error and seconds of every way after 20 iterations in float32 (`inversion.csv`, `.md`, `.png`).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from systems import DIRECT, DISTRIBUTIONS, ITERATIVE, REFINED, System, datainf, taken

GOALS = {torch.float32: 1e-5, torch.float64: 1e-10}
STARTS = ("Schulz, our start", "Schulz, published start", REFINED)
LONGEST = 60  # steps that Schulz's iteration is watched for
FIXED = (15, 20, 30)  # steps that published codes take
GOAL_WORDS = {"steps": "to the goal", "to rounding": "to the goal or twice Cholesky's error"}
EXPLODED = 1e6  # relative error at which a curve ends
Row = dict[str, Any]


def curves(system: System, steps: int) -> dict[str, list[float]]:
    """Return each way's relative errors after 1 … steps iterations in float64; DataInf's has one value throughout."""
    found = {"DataInf": [system.error(datainf(system))] * steps}
    for name, way in ITERATIVE.items():
        if name == REFINED:
            continue
        errors: list[float] = []
        for x in itertools.islice(way(system.m, system.v), steps):
            errors.append(system.error(x))
            if not errors[-1] < EXPLODED:
                break
        found[name] = errors
    return found


def schulz_row(system: System, start: str, dtype: torch.dtype) -> Row:
    """Say when Schulz's iteration reaches the goal, or twice Cholesky's error in this dtype where that is more; its
    least error, and the errors after the published steps: all of the system as the dtype has it, and how far rounding
    it moves the solution."""
    (m, v), of = system.to(dtype), system.rounded(dtype)
    errors: list[float] = []
    for x in itertools.islice(ITERATIVE[start](m, v), LONGEST):
        errors.append(system.error(x, of))
        stalled = len(errors) > 2 and errors[-1] < 0.1 and errors[-1] > 0.9 * errors[-2]
        if len(errors) >= max(FIXED) and (errors[-1] <= GOALS[dtype] / 10 or stalled):
            break
        if not math.isfinite(errors[-1]):
            break
    floor = system.error(taken("Cholesky", m, v, 0), of)
    goals = {"steps": GOALS[dtype], "to rounding": max(GOALS[dtype], 2 * floor)}
    reached = {key: next((step for step, e in enumerate(errors, 1) if e <= goal), None) for key, goal in goals.items()}
    fixed = {f"after {step}": errors[step - 1] if step <= len(errors) else math.nan for step in FIXED}
    name = str(dtype).removeprefix("torch.")
    return {
        "start": start,
        "dtype": name,
        **reached,
        "least": min(errors),
        "Cholesky": floor,
        "rounding": system.error(of),
        **fixed,
    }


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of the same keys."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown(rows: Sequence[Row]) -> str:
    """Write rows as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([words(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def words(value: Any) -> str:
    """Write a cell."""
    return "never" if value is None else f"{value:.1e}" if isinstance(value, float) else str(value)


def convergence(given: argparse.Namespace) -> None:
    """Run every (d, N, distribution)."""
    curve_rows: list[Row] = []
    steps_rows: list[Row] = []
    for d in given.dims:
        panels = {}
        for samples, distribution in itertools.product(given.samples, DISTRIBUTIONS):
            begun, system = time.perf_counter(), System(d, samples, distribution)
            where = {"d": d, "N": samples, "distribution": distribution}
            if d <= given.curves:
                panels[samples, distribution] = curves(system, given.steps)
                for name, errors in panels[samples, distribution].items():
                    curve_rows += [{**where, "way": name, "step": i, "error": e} for i, e in enumerate(errors, 1)]
            for start, dtype in itertools.product(STARTS, GOALS):
                if start == REFINED and dtype == torch.float64:
                    continue  # its residuals are in float64 already
                steps_rows.append({**where, **schulz_row(system, start, dtype)})
            print(f"{where} {time.perf_counter() - begun:.1f} s", flush=True)
        if panels:
            draw_curves(panels, given.samples, given.out / f"curves_{d}.png", d)
            write_csv(given.out / "curves.csv", curve_rows)
        write_csv(given.out / "schulz.csv", steps_rows)  # what is done is kept
    if curve_rows:
        (given.out / "curves.md").write_text(markdown(spreads(curve_rows, min(20, given.steps))), encoding="utf-8")
    (given.out / "schulz.md").write_text(markdown(summary(steps_rows)), encoding="utf-8")


def spreads(rows: Sequence[Row], step: int) -> list[Row]:
    """Give, per d and way, the least and the greatest error over distributions after so many iterations, for each N; a
    curve that ended before has exploded."""
    found = []
    for d, way in sorted({(row["d"], row["way"]) for row in rows}):
        own = [row for row in rows if (row["d"], row["way"]) == (d, way)]
        cells: Row = {"d": d, "way": way, "after": step}
        for count in sorted({row["N"] for row in own}):
            curves = {row["distribution"]: math.inf for row in own if row["N"] == count}
            curves |= {row["distribution"]: row["error"] for row in own if row["N"] == count and row["step"] == step}
            cells[f"N = {count}"] = " to ".join(words(end) for end in (min(curves.values()), max(curves.values())))
        found.append(cells)
    return found


def summary(rows: Sequence[Row]) -> list[Row]:
    """Say per start, dtype and d how many runs reach the goal, in how many steps, and the worst errors."""
    keys = sorted({(row["dtype"], row["start"], row["d"]) for row in rows})
    found = []
    for dtype, start, d in keys:
        own = [row for row in rows if (row["dtype"], row["start"], row["d"]) == (dtype, start, d)]
        worst = {
            key: max(row[key] for row in own)
            for key in ("least", "Cholesky", "rounding", *(f"after {s}" for s in FIXED))
        }
        told = {words: counted([row[key] for row in own]) for key, words in GOAL_WORDS.items()}
        found.append({"dtype": dtype, "start": start, "d": d, **told, **{f"worst {k}": v for k, v in worst.items()}})
    return found


def counted(steps: Sequence[int | None]) -> str:
    """Write in how many runs a goal was reached within 25 steps and at all, and in how many steps.

    >>> counted([12, 31, None])
    '1, 2 of 3 (12-31)'
    """
    reached = [step for step in steps if step is not None]
    spread = f" ({min(reached)}-{max(reached)})" if reached else ""
    return f"{sum(step <= 25 for step in reached)}, {len(reached)} of {len(steps)}{spread}"


def draw_curves(panels: dict, samples: Sequence[int], path: Path, d: int) -> None:
    """Draw a panel per N and distribution."""
    figure = Figure(figsize=(3.2 * len(DISTRIBUTIONS), 2.6 * len(samples) + 0.6))
    axes = figure.subplots(len(samples), len(DISTRIBUTIONS), sharex=True, sharey=True, squeeze=False)
    for (count, distribution), found in panels.items():
        axis = axes[list(samples).index(count)][DISTRIBUTIONS.index(distribution)]
        for number, (name, errors) in enumerate(found.items()):
            axis.semilogy(range(1, len(errors) + 1), errors, label=name, color=f"C{number}", linewidth=1.3)
        axis.set_title(f"{distribution}, N = {count:,}", fontsize=9)
        axis.set_ylim(1e-16, EXPLODED)
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=8, frameon=False)
    figure.supylabel("‖x - M⁻¹v‖ / ‖M⁻¹v‖", fontsize=9)
    figure.suptitle(f"d = {d}, float64, by iteration", fontsize=10)
    figure.tight_layout(rect=(0, 0.25 / len(samples), 1, 1))
    figure.savefig(path, dpi=90)


def inversion(given: argparse.Namespace) -> None:
    """Time every way on one system per d and seed."""
    rows: list[Row] = []
    for d, seed in itertools.product(given.dims, range(given.seeds)):
        system = System(d, given.samples[0], given.distribution, seed)
        m, v = system.to(torch.float32)
        for name in (*DIRECT, *ITERATIVE):
            rows.append({"d": d, "seed": seed, "way": name, **timed(name, system, m, v, given.steps)})
        print(f"d = {d}, seed {seed}", flush=True)
    write_csv(given.out / "inversion.csv", rows)
    means = list(mean_rows(rows))
    (given.out / "inversion.md").write_text(markdown(means), encoding="utf-8")
    draw_inversion(means, given.out / "inversion.png")


def timed(name: str, system: System, m: torch.Tensor, v: torch.Tensor, steps: int) -> Row:
    """Return error and seconds; the first call warms up where it is short."""
    begun = time.perf_counter()
    x = taken(name, m, v, steps)
    seconds = time.perf_counter() - begun
    if seconds < 1:
        begun = time.perf_counter()
        x = taken(name, m, v, steps)
        seconds = time.perf_counter() - begun
    return {"error": system.error(x), "seconds": seconds}


def mean_rows(rows: Sequence[Row]) -> Iterable[Row]:
    """Give the mean error and the median seconds over seeds, of which one may meet another process."""
    for d, way in dict.fromkeys((row["d"], row["way"]) for row in rows):
        own = [row for row in rows if (row["d"], row["way"]) == (d, way)]
        error, seconds = ([row[key] for row in own] for key in ("error", "seconds"))
        yield {"d": d, "way": way, "error": sum(error) / len(own), "seconds": median(seconds)}


def draw_inversion(rows: Sequence[Row], path: Path) -> None:
    """Draw error and seconds against d."""
    figure = Figure(figsize=(10, 4.2))
    axes = figure.subplots(1, 2)
    for axis, key in zip(axes, ("error", "seconds"), strict=True):
        for number, way in enumerate(dict.fromkeys(row["way"] for row in rows)):
            own = [row for row in rows if row["way"] == way]
            style = "--" if way in DIRECT else "-"
            axis.loglog(
                [r["d"] for r in own], [r[key] for r in own], style, marker=".", color=f"C{number % 10}", label=way
            )
        axis.set(xlabel="d", title={"error": "relative error of M⁻¹v", "seconds": "seconds"}[key])
        axis.grid(alpha=0.3)
    axes[0].set_ylim(top=1e3)
    axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Run one of the two studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("convergence", "inversion"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dims", type=int, nargs="+", help="128 256 512 1024, or 16 64 256 1024 for inversion")
    parser.add_argument("--samples", type=int, nargs="+", help="N; 200 800 6400 12800, or 12800 for inversion")
    parser.add_argument("--steps", type=int, help="iterations; 40, or 20 for inversion")
    parser.add_argument("--curves", type=int, default=512, help="the greatest d of which curves are drawn")
    parser.add_argument("--distribution", choices=DISTRIBUTIONS, default="N(0,1)", help="that of inversion")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    whole = given.study == "convergence"
    given.dims = given.dims or ([128, 256, 512, 1024] if whole else [16, 64, 256, 1024])
    given.samples = given.samples or ([200, 800, 6400, 12800] if whole else [12800])
    given.steps = given.steps or (40 if whole else 20)
    given.out.mkdir(parents=True, exist_ok=True)
    (convergence if whole else inversion)(given)


if __name__ == "__main__":
    main()
