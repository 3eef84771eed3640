"""Score a whole pool into a run folder, resumable and by any number of processes.

The folder gets `directions.safetensors` after the curvature pass, with `not_finite.json` of the samples it left out,
and one file per chunk of the score pass; each is written under a temporary name and renamed, and a run that is started
again goes on behind what is there, within the curvature pass too. The batch plan is a function of the configuration
alone, so a resumed run repeats the same arithmetic.

Processes that were started together deal batches and chunks among them. Jobs that know nothing of each other each take
a share of the chunks; whoever finds all chunks done puts the table together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from vlmsel import processes, runs
from vlmsel.scorers import Scorer
from vlmsel.scoring import progress
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.curvature import Directions, Pass, Streams, find_directions
from vlmsel.scoring.score_pass import Bad, Scoring, gradient_scorers, scoring

T = TypeVar("T")
CHUNK = 64  # batches per file of the score pass


@dataclass(frozen=True)
class Share:
    """Which part of the score pass this job does: `index` of 0 .. `of` - 1.

    >>> Share.read("2/4")
    Share(index=1, of=4)
    """

    index: int = 0
    of: int = 1

    @classmethod
    def read(cls, text: str | None) -> Share:
        """Read `i/n`, counted from 1; everything when None.

        Raises:
            ValueError: it is not that.
        """
        if text is None:
            return cls()
        index, slash, of = text.partition("/")
        if not (slash and index.isdecimal() and of.isdecimal() and 1 <= int(index) <= int(of)):
            raise ValueError(f"shard must be i/n with i from 1 to n, such as 2/4; got {text!r}")
        return cls(int(index) - 1, int(of))

    def has(self, chunk: int) -> bool:
        """Tell whether a chunk is this process's."""
        return chunk % (self.of * processes.count()) == self.index * processes.count() + processes.rank()


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
    job: Pass, plan: BatchPlan, streams: Streams, scorers: Sequence[Scorer], out: Path, share: Share = Share()
) -> Scored | None:
    """Run both passes, or what of them is not yet done in `out`; samples that were left out are in `job.bad`.

    Returns:
        The scores, or None as long as chunks of other jobs are not there.

    Raises:
        ValueError: a target has no finite gradient, or `out` holds parts of another run.
    """
    job.model.eval()
    directions = _directions(job, streams, scorers, out)
    device = next(job.model.parameters()).device
    stacks = {name: stack.to(device) for name, stack in directions.stacks.items()}
    _score_chunks(job, plan, stacks, directions.normalised, out, share)
    processes.wait()
    starts = range(0, len(plan.groups), CHUNK)
    if not all(_part(out, start).is_file() for start in starts):
        return None
    parts = [_read_part(plan, out, start) for start in starts]  # small: scores only
    uids, losses = torch.cat([p["uids"] for p in parts]), torch.cat([p["losses"] for p in parts])
    scores = torch.cat([p["scores"] for p in parts], 1)
    job.bad.add_codes(uids, torch.cat([p["codes"] for p in parts]))
    scored = Scored(uids, losses, scores, directions.names, directions.details)
    return _without(_with_random(scored, scorers, list(streams.targets)), job.bad)


def _directions(job: Pass, streams: Streams, scorers: Sequence[Scorer], out: Path) -> Directions:
    path, reasons = out / "directions.safetensors", out / "not_finite.json"
    wanted = gradient_scorers(scorers)
    if not wanted:  # losses only
        return Directions((), {block.name: torch.zeros(0, block.rows, block.cols) for block in job.blocks}, {})
    if processes.gather(path.is_file()) != [True] * processes.count():
        found = find_directions(job, streams, wanted, out)
        if processes.is_main():
            runs.write_json(reasons, {str(uid): reason for uid, reason in job.bad.reasons.items()})
            found.save(path)
            progress.remove(out)
        processes.wait()
    directions = _load(path, Directions.load)
    names = {(scorer.name, target) for scorer in wanted for target in streams.targets}
    if set(directions.names) != names or set(directions.stacks) != {block.name for block in job.blocks}:
        raise ValueError(
            f"{path}: made for other scorers, targets or blocks; choose another --out or delete the folder"
        )
    if reasons.is_file():
        job.bad.reasons.update({int(uid): reason for uid, reason in runs.read_json(reasons).items()})
    return directions


def _load(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except SafetensorError as problem:
        raise ValueError(f"{path}: damaged ({problem}); delete it and run the same command again") from None


# The score pass


def _part(out: Path, start: int) -> Path:
    return out / "parts" / f"{start:08d}.safetensors"


def _positions(plan: BatchPlan, start: int) -> Tensor:
    return torch.tensor([i for group in plan.groups[start : start + CHUNK] for i in group])


def _read_part(plan: BatchPlan, out: Path, start: int) -> dict[str, Tensor]:
    """Read a chunk's file.

    Raises:
        ValueError: it is damaged, or holds other samples.
    """
    path, positions = _part(out, start), _positions(plan, start)
    part = _load(path, load_file)
    if not torch.equal(part.get("positions", positions[:0]), positions):
        raise ValueError(f"{path}: holds other samples; choose another --out or delete the folder")
    return part


def _score_chunks(
    job: Pass, plan: BatchPlan, stacks: dict[str, Tensor], normalised: Sequence[bool], out: Path, share: Share
) -> None:
    """Score this process's chunks, but for those that are there."""
    starts = [start for number, start in enumerate(range(0, len(plan.groups), CHUNK)) if share.has(number)]
    total = sum(sum(plan.sizes[start : start + CHUNK]) for start in starts)
    with (
        tqdm(total=total, desc="score pass", unit="sample", dynamic_ncols=True, disable=not processes.is_main()) as bar,
        scoring(job.model, job.objective, job.blocks, stacks, job.budget, normalised) as score,
    ):
        for start in starts:
            if _part(out, start).is_file():
                bar.update(len(_read_part(plan, out, start)["uids"]))
                continue
            part = _score_chunk(plan.batches(start, start + CHUNK), score, bar)
            part["positions"] = _positions(plan, start)
            with runs.atomic_path(_part(out, start)) as temporary:
                save_file(part, temporary)


def _score_chunk(batches: Iterable[Any], score: Scoring, bar: tqdm) -> dict[str, Tensor]:
    found = [one for batch in batches for one in _noting(score(batch), bar)]
    return {
        "uids": torch.cat([one.uids.cpu() for one in found]),
        "losses": torch.cat([one.losses.cpu() for one in found]),
        "codes": torch.cat([one.codes.cpu() for one in found]),
        "scores": torch.cat([one.scores.cpu() for one in found], 1).contiguous(),
    }


def _noting(found: Iterator[Any], bar: tqdm) -> Iterator[Any]:
    for one in found:
        bar.update(len(one.uids))
        yield one


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
