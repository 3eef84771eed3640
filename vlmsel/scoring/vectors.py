"""A vector per sample from forward passes of a model, for scorers that look at no gradients.

A run folder keeps those of every chunk of batches, so that a run that was stopped goes on behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from vlmsel import processes, runs
from vlmsel.models.subject import Subject
from vlmsel.scoring.batches import BatchPlan, progress_bar
from vlmsel.scoring.halving import Budget, in_pieces
from vlmsel.scoring.pool_pass import Share, load_part


def sample_vectors(kind: str, subject: Subject, plan: BatchPlan, folder: Path | None, budget: Budget) -> Tensor:
    """Return the vectors, `hidden` or `embedding`, of a plan's samples in the plan's order. [n, d] float32

    Args:
        kind: which vectors; see `Samples`.
        subject: the model that reads the samples.
        plan: the samples in batches.
        folder: the run folder that keeps them; None keeps none.
        budget: the most tokens that fit.

    Raises:
        ValueError: there is no such kind, or a sample does not fit into memory even alone.
    """
    if kind not in _MADE:
        raise ValueError(f"there are no {kind!r} vectors of samples; there are {' and '.join(_MADE)}")
    share = Share().by(plan.cut is not None)
    chunks = share.chunks(len(plan.groups))
    own = [chunk for chunk in chunks if share.has(chunk.start)]
    found: dict[int, Tensor] = {}
    sizes = [plan.sizes[number] for chunk in own for number in chunk]
    with progress_bar(f"{kind} vectors", sizes) as bar:
        for chunk in own:
            found[chunk.start] = _chunk(kind, subject, plan, chunk, folder, budget)
            bar.update(len(found[chunk.start]))
    for part in processes.gather(found):
        found |= part
    return torch.cat([found[chunk.start] for chunk in chunks])


def _chunk(kind: str, subject: Subject, plan: BatchPlan, chunk: range, folder: Path | None, budget: Budget) -> Tensor:
    path = None if folder is None else folder / "vectors" / f"{kind}-{chunk.start:08d}.safetensors"
    if path is not None and path.is_file():
        return load_part(path, load_file)["vectors"]
    # where none of a window can be used, there is an empty vector, which adds nothing
    vectors = torch.cat([torch.zeros(0), *(_batch(kind, subject, batch, budget) for batch in plan.batches(chunk))])
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        with runs.atomic_path(path) as temporary:
            save_file({"vectors": vectors}, temporary)
    return vectors


@torch.no_grad()
def _batch(kind: str, subject: Subject, batch: object, budget: Budget) -> Tensor:
    subject.module.eval()

    def give_up(part: object) -> Tensor:
        raise ValueError("a sample does not fit into memory even alone; take a smaller --max_length")

    pieces = in_pieces(batch, lambda part: _MADE[kind](subject, part).float().cpu(), give_up, budget)
    return torch.cat([vectors for _, vectors in pieces])


def _hidden(subject: Subject, batch: object) -> Tensor:
    states, mask = subject.hidden(batch)
    weights = mask.cumsum(1) * mask
    return torch.einsum("ntd,nt->nd", states.float(), weights / weights.sum(1, keepdim=True))


def _embedding(subject: Subject, batch: object) -> Tensor:
    return torch.cat([normalize(part) for part in subject.embedding(batch)], -1)


_MADE = {"hidden": _hidden, "embedding": _embedding}


def in_order(vectors: Tensor, plan: BatchPlan, positions: Sequence[int]) -> Tensor:
    """Return the vectors of a plan's samples at some positions of its data. [positions, d]"""
    rows = {position: row for row, position in enumerate(plan.order())}
    return vectors[[rows[position] for position in positions]]
