"""Score a whole pool into a run folder, resumable and by any number of processes.

The folder gets `directions.safetensors`, the preconditioned targets, after the curvature pass, and one file per chunk
of the score pass; each is written under a temporary name and renamed, and a run that is started again goes on behind
what is there, within the curvature pass too. The batches are a function of the configuration alone, so a resumed run
repeats the same arithmetic.

Processes that were started together deal batches and chunks among them. Jobs that know nothing of each other each take
a share of the chunks; whoever finds all chunks done puts the table together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlmsel import processes, runs
from vlmsel.scorers import Samples, Scorer
from vlmsel.scorers.base import gradient_scorers, sample_scorers
from vlmsel.scorers.normalise import over_norm
from vlmsel.scoring import progress, room
from vlmsel.scoring.aggregate import Aggregate, aggregate
from vlmsel.scoring.batches import progress_bar
from vlmsel.scoring.curvature import FitSources, Preconditioned, Targets, precondition
from vlmsel.scoring.memory_plan import Prefer
from vlmsel.scoring.no_gradient import check_scores, without_zeros
from vlmsel.scoring.score_pass import BatchScores, ScoreReducer
from vlmsel.scoring.source import GradientSource, LeftOut, left_out
from vlmsel.scoring.targets import is_virtual
from vlmsel.scoring.virtual import TargetSample, Virtual

T = TypeVar("T")
CHUNK = 64  # batches per file of the score pass
TURN = ".lock.curvature"
POLL = 1.0  # seconds between two looks whether another job is done


@dataclass(frozen=True)
class Share:
    """Which part of the score pass this job does: `index` of 0 .. `of` - 1, in chunks of `chunk` batches.

    >>> Share.read("2/4")
    Share(index=1, of=4, chunk=64)
    """

    index: int = 0
    of: int = 1
    chunk: int = CHUNK

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

    def by(self, windows: bool) -> Share:
        """Return the part of a pass that goes by windows, each a chunk; this one of a pass that does not."""
        return replace(self, chunk=1) if windows else self

    def has(self, number: int) -> bool:
        """Tell whether a batch is in a chunk of this process."""
        return number // self.chunk % (self.of * processes.count()) == self.index * processes.count() + processes.rank()

    def chunks(self, batches: int) -> list[range]:
        """Return the batches of all chunks."""
        starts = range(0, batches, self.chunk)
        return [range(start, min(start + self.chunk, batches)) for start in starts]


class ScorerAffinities(NamedTuple):
    """A scorer's affinities a_ti = Σ_k M_tk C_ik (highest = most helpful) by columns: the virtual targets, with M, C
    [n, r], norms of samples [n] and of target samples [T], and ⟨P w, w'⟩ of the columns where these are norms in its
    own metric [r, r], None where they are plain norms."""

    virtual: Virtual
    columns: Tensor
    norms: Tensor
    target_norms: Tensor
    inner: Tensor | None

    def cosines(self) -> ScorerAffinities:
        """Return the affinities over both norms, which are 1 then, or 0 as before."""
        mixing = over_norm(self.virtual.mixing, self.target_norms.double().square()[:, None])
        columns = over_norm(self.columns, self.norms.double().square()[:, None])
        norms, target_norms = ((norms > 0).to(norms) for norms in (self.norms, self.target_norms))
        return self._replace(
            virtual=replace(self.virtual, mixing=mixing), columns=columns, norms=norms, target_norms=target_norms
        )


class PoolAffinities(NamedTuple):
    """Affinities of samples [n] for target samples, by scorer."""

    uids: Tensor
    targets: tuple[TargetSample, ...]
    of: Mapping[str, ScorerAffinities]


@dataclass(frozen=True)
class Scored:
    """Scores of the samples that could be read, lowest = most helpful.

    Attributes:
        uids: the samples. [n]
        losses: their losses. [n]
        scores: NaN for samples that were left out. [columns, n]
        names: scorer and target of each column.
        details: numbers that scorers recorded.
        left_out: samples that were left out, and why.
        affinities: by the single target samples, where these were targets; of the samples that were not left out.
    """

    uids: Tensor
    losses: Tensor
    scores: Tensor
    names: tuple[tuple[str, str], ...]
    details: dict[str, Any]
    left_out: LeftOut
    affinities: PoolAffinities | None = None

    def masked(self) -> Scored:
        """Take the scores of samples that were left out, which those of a finite block may have."""
        return replace(self, scores=self.scores.masked_fill(~self.fine(), float("nan")))

    def with_columns(self, scores: Tensor, names: Sequence[tuple[str, str]], details: Mapping[str, Any]) -> Scored:
        """Add columns."""
        dtype = torch.promote_types(self.scores.dtype, scores.dtype)
        both = torch.cat([self.scores.to(dtype), scores.to(dtype)])
        return replace(self, scores=both, names=(*self.names, *names), details={**self.details, **details}).masked()

    def with_samples(self, scorers: Sequence[Scorer], samples: Samples, targets: Mapping[str, Samples]) -> Scored:
        """Add the columns of the scorers that look at samples, whose order is that of `uids`."""
        found = self
        for scorer in sample_scorers(scorers):
            names = [(scorer.name, target) for target in targets]
            found = found.with_columns(without_zeros(names, scorer.score(samples, targets)).to(self.scores), names, {})
        return found

    def fine(self) -> Tensor:
        """Tell of each sample whether it was not left out. [n]"""
        return torch.tensor([uid not in self.left_out for uid in self.uids.tolist()], dtype=torch.bool)


def score_pool(
    pool: GradientSource,
    fit: FitSources,
    targets: Targets,
    scorers: Sequence[Scorer],
    out: Path,
    share: Share = Share(),
    place: Prefer = "auto",
    how: Aggregate = "sum",
) -> Scored | None:
    """Run both passes for the scorers that look at gradients, or what of them is not yet done in `out`.

    Args:
        pool: the samples to score.
        fit: the samples that curvature is gathered, and damping measured, on.
        targets, scorers: what is scored for, and by what.
        out: the run folder.
        share: the part of the score pass that this job does.
        place: where curvature is gathered.
        how: how the scores of blocks are put together.

    Returns:
        The scores, or None as long as chunks of other jobs are not there.

    Raises:
        ValueError: a target has no finite gradient, it or the pool has none at all, or `out` holds parts of another
            run.
    """
    room.require(pool, fit, targets, scorers, out)
    h = _preconditioned(pool, fit, targets, scorers, out, place)
    share = share.by(pool.windows)
    stacks = {name: stack.to(pool.device) for name, stack in h.stacks.items()}
    norms = [{name: own.to(pool.device) for name, own in one.items()} for one in h.norms]
    kept = [] if how == "sum" else [column for column, (_, target) in enumerate(h.names) if not is_virtual(target)]
    _score_chunks(pool, ScoreReducer(stacks, h.normalised, norms, kept), out, share)
    processes.wait()
    chunks = share.chunks(len(pool.sizes))
    if not all(_part(out, chunk).is_file() for chunk in chunks):
        return None
    whole = BatchScores.joined([_read_part(pool, out, chunk) for chunk in chunks])  # small: scores only
    if kept:
        fine = torch.isfinite(whole.by_block).all(0).all(0)
        columns = torch.full_like(whole.by_block[0], float("nan"))
        columns[:, fine] = aggregate(whole.by_block[..., fine], how)
        whole.scores[kept] = columns.to(whole.scores)
    lost = h.left_out | left_out(whole.uids, whole.codes)
    scored = Scored(whole.uids, whole.losses, whole.scores, h.names, h.details, lost).masked()
    if h.virtual is not None:
        assert targets.each is not None
        scored = _with_affinities(scored, whole.squares, targets.each.squares(norms), h)
    check_scores(scored.names, scored.scores, h.stacks)
    return scored


def _with_affinities(scored: Scored, squares: Tensor, of_targets: Tensor, h: Preconditioned) -> Scored:
    """Turn the virtual columns into affinities by single target samples."""
    assert h.virtual is not None
    fine = torch.isfinite(scored.scores).all(0)
    which = {name: 1 + number for number, name in enumerate(h.metrics)}  # the first norm is the plain one
    virtual = torch.tensor([is_virtual(target) for _, target in h.names])
    cosines = {name for (name, _), divided in zip(h.names, h.normalised, strict=True) if divided}
    found = {}
    for scorer in dict.fromkeys(scorer for scorer, _ in h.names):
        own = virtual & torch.tensor([name == scorer for name, _ in h.names])
        norm, target_norm = (one[which.get(scorer, 0)].sqrt().float() for one in (squares, of_targets))
        columns = -scored.scores[own][:, fine].T
        of = ScorerAffinities(h.virtual, columns, norm[fine], target_norm, h.inner.get(scorer))
        found[scorer] = of.cosines() if scorer in cosines else of
    names = tuple(name for name in h.names if not is_virtual(name[1]))
    return replace(
        scored, scores=scored.scores[~virtual], names=names,
        affinities=PoolAffinities(scored.uids[fine], h.virtual.samples, found),
    )  # fmt: skip


def _preconditioned(
    pool: GradientSource, fit: FitSources, targets: Targets, scorers: Sequence[Scorer], out: Path,
    place: Prefer,
) -> Preconditioned:  # fmt: skip
    """Return what a run that was stopped has left of the curvature pass's result, or make it."""
    path, wanted = out / "directions.safetensors", gradient_scorers(scorers)
    if not wanted:  # losses only
        return Preconditioned((), {name: torch.zeros(0, *shape) for name, shape in pool.shapes().items()}, {})
    with _turn(out / TURN, path) as mine:
        if mine:
            found = precondition(targets, fit, wanted, out, place)
            if processes.is_main():
                found.save(path)
                progress.remove(out)
            processes.wait()
    h = load_part(path, Preconditioned.load)
    names = {(scorer.name, target) for scorer in wanted for target in targets.names}
    if {name for name in h.names if not is_virtual(name[1])} != names or set(h.stacks) != set(pool.shapes()):
        raise ValueError(
            f"{path}: made for other scorers, targets or blocks; choose another --out or delete the folder"
        )
    return h


@contextmanager
def _turn(lock: Path, result: Path) -> Iterator[bool]:
    """Have one job at a time make a result that all jobs on a folder need; tell whether it is this one's turn.

    The others wait until the result is there, or take their turn where the job before them died.
    """
    waiting = False
    while not (there := all(processes.gather(result.is_file()))):
        if processes.gather(not processes.is_main() or _locked(lock))[0]:
            there = all(processes.gather(result.is_file()))
            break
        if processes.is_main() and not waiting:
            print(f"{lock.parent}: another job runs the curvature pass; waiting for its result", flush=True)
        waiting = True
        time.sleep(POLL)
    try:
        yield not there
    finally:
        runs.unlock(lock)


def _locked(lock: Path) -> bool:
    """Lock a file, where there are locks; False when another job has it."""
    try:
        runs.lock(lock)
    except ValueError:
        return False
    return True


def load_part(path: Path, read: Callable[[Path], T]) -> T:
    """Read a file that a run left of itself.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return read(path)
    except SafetensorError as problem:
        raise ValueError(f"{path}: damaged ({problem}); delete it and run the same command again") from None


# The chunks


def _part(out: Path, chunk: range) -> Path:
    return out / "parts" / f"{chunk.start:08d}.safetensors"


def _read_part(pool: GradientSource, out: Path, chunk: range) -> BatchScores:
    """Read a chunk's file."""
    path, positions = _part(out, chunk), pool.samples(chunk)
    part = load_part(path, load_file)
    if not torch.equal(part.pop("positions", positions[:0]), positions):
        raise ValueError(f"{path}: holds other samples; choose another --out or delete the folder")
    return BatchScores(**part)


def _score_chunks(pool: GradientSource, reducer: ScoreReducer, out: Path, share: Share) -> None:
    """Score this process's chunks, but for those that are there."""
    chunks = [chunk for chunk in share.chunks(len(pool.sizes)) if share.has(chunk.start)]
    sizes = [pool.sizes[number] for chunk in chunks for number in chunk]
    with progress_bar("score pass", sizes) as bar, pool.passing(reducer) as read:
        for chunk in chunks:
            if _part(out, chunk).is_file():
                bar.update(len(_read_part(pool, out, chunk).uids))
                continue
            found = []
            for one in (one for pieces in read(chunk) for one in pieces):
                found.append(BatchScores(*(tensor.cpu() for tensor in one)))
                bar.update(len(one.uids))
            with runs.atomic_path(_part(out, chunk)) as temporary:
                save_file(
                    {**BatchScores.joined(found or [reducer.nothing()])._asdict(), "positions": pool.samples(chunk)},
                    temporary,
                )
