"""Score a whole pool into a run folder, resumable.

The folder gets `directions.safetensors` after the curvature pass, with `not_finite.json` of the samples it left out,
and one file per chunk of the score pass; each is written under a temporary name and renamed, and a run that is started
again goes on behind the last finished one. The batch plan is a function of the configuration alone, so a resumed run
repeats the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from vlmsel import runs
from vlmsel.gradients import Block
from vlmsel.scorers import Scorer
from vlmsel.scoring.directions import Directions, Streams, find_directions
from vlmsel.scoring.passes import Bad, Objective, gradient_scorers, score_batch
from vlmsel.scoring.stream import BatchPlan

T = TypeVar("T")
CHUNK = 64  # batches per file of the score pass


@dataclass(frozen=True)
class Scored:
    """Scores of the samples that could be read: `[columns, n]` for `names`, lowest = most helpful; NaN for samples that
    were left out."""

    uids: Tensor
    losses: Tensor
    scores: Tensor
    names: tuple[tuple[str, str], ...]
    details: dict[str, Any]


def score_pool(
    model: nn.Module,
    plan: BatchPlan,
    streams: Streams,
    scorers: Sequence[Scorer],
    blocks: Sequence[Block],
    objective: Objective,
    out: Path,
) -> tuple[Scored, Bad]:
    """Run both passes, or what of them is not yet done in `out`.

    Returns:
        The scores, and the samples that were left out with their reasons.

    Raises:
        ValueError: a target has no finite gradient, or `out` holds parts of another run.
    """
    bad = Bad()
    model.eval()
    directions = _directions(model, streams, scorers, blocks, objective, out, bad)
    device = next(model.parameters()).device
    stacks = {name: stack.to(device) for name, stack in directions.stacks.items()}
    parts = list(_score_chunks(model, plan, blocks, objective, stacks, out))  # small: scores only
    uids, losses = torch.cat([p["uids"] for p in parts]), torch.cat([p["losses"] for p in parts])
    scores = torch.cat([p["scores"] for p in parts], 1)
    bad.add(uids[~torch.isfinite(losses)], "the loss is not finite")
    bad.add(uids[torch.isfinite(losses) & ~torch.isfinite(scores).all(0)], "the gradient is not finite")
    scored = Scored(uids, losses, scores, directions.names, directions.details)
    return _without(_with_random(scored, scorers, list(streams.targets)), bad), bad


def _directions(
    model: nn.Module,
    streams: Streams,
    scorers: Sequence[Scorer],
    blocks: Sequence[Block],
    objective: Objective,
    out: Path,
    bad: Bad,
) -> Directions:
    path, reasons = out / "directions.safetensors", out / "not_finite.json"
    wanted = gradient_scorers(scorers)
    if not wanted:  # losses only
        return Directions((), {block.name: torch.zeros(0, block.rows, block.cols) for block in blocks}, {})
    if not path.is_file():
        found = find_directions(model, streams, wanted, blocks, objective, bad)
        runs.write_json(reasons, {str(uid): reason for uid, reason in bad.reasons.items()})
        found.save(path)
    directions = _load(path, Directions.load)
    names = {(scorer.name, target) for scorer in wanted for target in streams.targets}
    if set(directions.names) != names or set(directions.stacks) != {block.name for block in blocks}:
        raise ValueError(
            f"{path}: made for other scorers, targets or blocks; choose another --out or delete the folder"
        )
    if reasons.is_file():
        bad.reasons.update({int(uid): reason for uid, reason in runs.read_json(reasons).items()})
    return directions


def _load(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except SafetensorError as problem:
        raise ValueError(f"{path}: damaged ({problem}); delete it and run the same command again") from None


def _score_chunks(
    model: nn.Module,
    plan: BatchPlan,
    blocks: Sequence[Block],
    objective: Objective,
    stacks: dict[str, Tensor],
    out: Path,
) -> Iterable[dict[str, Tensor]]:
    total = sum(plan.sizes)
    with tqdm(total=total, desc="score pass", unit="sample", dynamic_ncols=True) as bar:
        for start in range(0, len(plan.sizes), CHUNK):
            path = out / "parts" / f"{start:08d}.safetensors"
            positions = torch.tensor([i for group in plan.groups[start : start + CHUNK] for i in group])
            if path.is_file():
                part = _load(path, load_file)
                if not torch.equal(part.get("positions", positions[:0]), positions):
                    raise ValueError(f"{path}: holds other samples; choose another --out or delete the folder")
                bar.update(len(part["uids"]))
            else:
                part = _score_chunk(model, plan.batches(start, start + CHUNK), blocks, objective, stacks, bar)
                part["positions"] = positions
                with runs.atomic_path(path) as temporary:
                    save_file(part, temporary)
            yield part


def _score_chunk(
    model: nn.Module,
    batches: Iterable[Any],
    blocks: Sequence[Block],
    objective: Objective,
    stacks: dict[str, Tensor],
    bar: tqdm,
) -> dict[str, Tensor]:
    uids, losses, scores = [], [], []
    for batch in batches:
        one_scores, one_losses = score_batch(model, batch, objective, blocks, stacks)
        uids.append(batch.uids.cpu())
        losses.append(one_losses.cpu())
        scores.append(one_scores.cpu())
        bar.update(len(batch.uids))
    return {"uids": torch.cat(uids), "losses": torch.cat(losses), "scores": torch.cat(scores, 1).contiguous()}


def _without(scored: Scored, bad: Bad) -> Scored:
    """Take the scores of samples that were left out, which random ones and those of a finite block may have."""
    out = torch.tensor([uid in bad.reasons for uid in scored.uids.tolist()], dtype=torch.bool)
    return replace(scored, scores=scored.scores.masked_fill(out, float("nan")))


def _with_random(scored: Scored, scorers: Sequence[Scorer], targets: list[str]) -> Scored:
    """Add the columns of scorers that need no gradients."""
    names, columns = list(scored.names), [scored.scores]
    for scorer in scorers:
        if not scorer.uses_gradients:
            names += [(scorer.name, target) for target in targets]
            columns.append(scorer.draw(scored.uids, targets).to(scored.scores.dtype))  # type: ignore[attr-defined]
    return replace(scored, scores=torch.cat(columns), names=tuple(names))
