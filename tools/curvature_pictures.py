"""GFIM against FIM on real gradients (HyperINF's Figures 5, 17 and 18): matrices, distances, ranks.

    python tools/curvature_pictures.py --out runs/curvature [--model tiny-aligned] [--pool FILE --images DIR]

Without a pool the embedded world is drawn. Per block [r, d]: how far I ⊗ E[gᵀg] / r (HyperINF's picture of the FIM by
the long side's GFIM), R ⊗ C / τ (`TwoSided`) and the FIM's own diagonal are from the FIM, ‖A - FIM‖ / ‖FIM‖; and the
ranks of single samples' gradients: singular values above 1 % of the largest, and the stable rank ‖g‖² / σ₁². Writes
`distances.csv`, `ranks.csv`, `summary.md`, `matrices.png` of one block and `ranks.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from solver_study import Row, markdown, write_csv
from torch import Tensor

from vlmsel.data.dataset import Reading
from vlmsel.data.world.files import WorldSizes, write_world
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.scoring.batches import Batching
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.source import ModelSource

MOST = 2048  # entries of a block whose FIM is formed
SHOWN = 128  # rows and columns of a picture
SMALL = 0.01  # of the largest singular value


def gradients_of(given: argparse.Namespace) -> dict[str, Tensor]:
    """Return every block's gradients of the first samples. [n, rows, cols]"""
    pool, images = given.pool, given.images
    if pool is None:
        write_world(given.out / "world", WorldSizes(0, given.samples, 0, 0))
        pool, images = given.out / "world/pool.json", given.out / "world/images"
    subject = open_subject(given.model)
    read = open_pool(subject, pool, Reading(images and Path(images), 2048, "answers")).samples
    positions = list(read.usable())[: given.samples]
    source = ModelSource(subject, subject.blocks(given.blocks), Batching().plan(subject, read, positions), Budget())
    found: dict[str, list[Tensor]] = {}
    with source.gradients() as reads:
        for pieces in reads(range(len(source.sizes))):
            for one in pieces:
                for name, factor in one.clean()[0].factors.items():
                    found.setdefault(name, []).append(factor.dense().double().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def matrices(gradients: Tensor) -> dict[str, Tensor]:
    """Return the FIM and what stands for it, for blocks that are not taller than wide. [rows·cols, rows·cols]"""
    count, rows, _ = gradients.shape
    flat = gradients.flatten(1)
    long, short = (sum_of(side) / count for side in (gradients, gradients.mT))
    fim = flat.T @ flat / count
    two = torch.kron(short, long) / long.diagonal().sum().clamp_min(1e-300)
    one = torch.kron(torch.eye(rows, dtype=long.dtype), long) / rows
    return {"FIM": fim, "I ⊗ GFIM / r": one, "two-sided": two, "diagonal of FIM": fim.diagonal().diag()}


def sum_of(gradients: Tensor) -> Tensor:
    """Return Σ gᵀg."""
    tall = gradients.reshape(-1, gradients.shape[2])
    return tall.T @ tall


def distances(name: str, found: dict[str, Tensor]) -> Row:
    """Return how far each matrix is from the FIM, relative to it."""
    fim = found["FIM"]
    return {
        "block": name,
        **{key: float((one - fim).norm() / fim.norm()) for key, one in found.items() if key != "FIM"},
    }


def ranks(name: str, gradients: Tensor) -> Row:
    """Return the mean and the quartiles of samples' ranks."""
    values = torch.linalg.svdvals(gradients[gradients.flatten(1).norm(dim=1) > 0])
    counted = (values > SMALL * values[:, :1]).sum(1).double()
    stable = values.square().sum(1) / values[:, 0].square()
    low, middle, high = counted.quantile(counted.new_tensor([0.25, 0.5, 0.75])).tolist()
    shape = {"rows": gradients.shape[1], "cols": gradients.shape[2]}
    return {"block": name, **shape, "25 %": low, "median": middle, "75 %": high, "stable": float(stable.mean())}


def draw_matrices(found: dict[str, Tensor], title: str, path: Path) -> None:
    """Draw |entries| of the upper left part, on the FIM's logarithmic scale."""
    figure = Figure(figsize=(3.2 * len(found), 3.6))
    top = float(found["FIM"].abs().amax())
    for axis, (name, one) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        part = (one[:SHOWN, :SHOWN].abs() / top).clamp_min(1e-6).log10()
        axis.imshow(part.numpy(), vmin=-4, vmax=0, cmap="magma")
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def draw_ranks(gradients: dict[str, Tensor], path: Path) -> None:
    """Draw a histogram of samples' ranks by kind of block."""
    figure = Figure(figsize=(6.5, 3.6))
    axis = figure.subplots()
    kinds: dict[str, list[Tensor]] = {}
    for name, own in gradients.items():
        values = torch.linalg.svdvals(own[own.flatten(1).norm(dim=1) > 0])
        kind = next((kind for kind in ("lora_A", "lora_B") if kind in name), "others")
        kinds.setdefault(kind, []).append((values > SMALL * values[:, :1]).sum(1))
    for kind, parts in kinds.items():
        whole = torch.cat(parts)
        axis.hist(whole.numpy(), bins=range(1, int(whole.max()) + 2), density=True, histtype="step", label=kind)
    axis.set(xlabel="singular values above 1 % of the largest", ylabel="share of samples and blocks")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="tiny-aligned")
    parser.add_argument("--pool")
    parser.add_argument("--images")
    parser.add_argument("--blocks", default="lora")
    parser.add_argument("--samples", type=int, default=400)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    gradients = gradients_of(given)
    wide = {name: own if own.shape[1] <= own.shape[2] else own.mT for name, own in gradients.items()}
    small = {name: own for name, own in wide.items() if own[0].numel() <= MOST and own.abs().sum() > 0}
    if not small:
        parser.error(f"no block has gradients and at most {MOST} entries; choose others with --blocks")
    first = next(iter(small))
    draw_matrices(
        matrices(small[first]), f"{first} {list(small[first].shape[1:])}, log₁₀ |entry|", given.out / "matrices.png"
    )
    rows = [distances(name, matrices(own)) for name, own in small.items()]
    write_csv(given.out / "distances.csv", rows)
    write_csv(given.out / "ranks.csv", [ranks(name, own) for name, own in wide.items() if own.abs().sum() > 0])
    draw_ranks({name: own for name, own in gradients.items() if own.abs().sum() > 0}, given.out / "ranks.png")
    keys = [key for key in rows[0] if key != "block"]
    mean = {"blocks": len(rows), **{key: sum(row[key] for row in rows) / len(rows) for key in keys}}
    (given.out / "summary.md").write_text(markdown([mean]), encoding="utf-8")


if __name__ == "__main__":
    main()
