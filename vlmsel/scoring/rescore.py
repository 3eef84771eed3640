"""Run scorers on a gradient store, without the model: others, other damping, other fit samples, samples left out.

The passes are those over a pool, and the numbers theirs to the rounding of the store's dtype. With a projection,
scorers run in the projected space: inner products are right on average, and curvature is that of projected gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlmsel import runs
from vlmsel.gradients.store.format import STORE, TARGETS
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.scorers import Samples, Scorer
from vlmsel.scorers.base import feature_scorers
from vlmsel.scoring.aggregate import Aggregate
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.memory_plan import Prefer
from vlmsel.scoring.passes import FitPart
from vlmsel.scoring.pool_pass import Scored, score_pool
from vlmsel.scoring.pool_table import Records
from vlmsel.scoring.source import StoreSource


@dataclass(frozen=True)
class StoredPool:
    """A store with what is known of its pool's records.

    Attributes:
        store: the store.
        records: the pool's records.
        lacking: samples without scores: why, and the loss of each: those that the store lacks, and those left out.
        excluded: uids of samples that are neither fitted on nor scored.
        keep: the samples that are scored.
    """

    store: GradientStore
    records: Records
    lacking: Mapping[int, tuple[str, float]]
    excluded: set[int]
    keep: set[int]

    @classmethod
    def open(cls, folder: str, device: str = "cpu", leave_out: str | None = None) -> StoredPool:
        """Open a store; `leave_out` is a JSON list of uids that are neither fitted on nor scored.

        Raises:
            FileNotFoundError, ValueError: it is no finished store, or the list cannot be used.
        """
        store = GradientStore.open(folder, device)
        records = Records.from_json(store.records)
        excluded = read_uids(leave_out, len(records)) if leave_out else set()
        losses = dict(zip(store.uids.tolist(), store.losses.tolist(), strict=True))
        if not losses.keys() - excluded:
            raise ValueError(f"{leave_out}: leaves none of the {len(losses)} samples of {folder}; list fewer uids")
        dropped = {uid: (f"left out by {leave_out}", losses[uid]) for uid in excluded & losses.keys()}
        return cls(store, records, {**store.left_out, **dropped}, excluded, losses.keys() - excluded)

    def inputs(self) -> dict[str, str]:
        """Name what scores depend on beside the configuration, by its content."""
        files = {name: runs.file_hash(self.store.folder / name) for name in (STORE, TARGETS)}
        return {"the store": repr(files), "the samples left out": repr(sorted(self.excluded))}

    def targets(self, names: Sequence[str] | None = None) -> Targets:
        """Return the targets of these names, or all.

        Raises:
            ValueError: the store has no such target.
        """
        own = self.store.targets
        chosen = own if names is None else tuple(names)
        unknown = [name for name in chosen if name not in own]
        if unknown or not chosen:
            asked = repr(unknown[0]) if unknown else "asked for"
            raise ValueError(f"{self.store.folder}: no target {asked}; the gradient store has {', '.join(own)}")
        rows = [own.index(name) for name in chosen]
        return Targets(chosen, lambda: {name: v[rows] for name, v in self.store.target_gradients().items()})

    def source(self, uids: Sequence[int]) -> StoreSource:
        """Return those of these samples that are kept, to make P from.

        Raises:
            ValueError: there is none.
        """
        source = StoreSource(self.store, self.keep.intersection(uids))
        if not source.sizes:
            raise ValueError("no sample to fit curvature or measure damping on; give at least one uid")
        return source

    def samples(self, uids: Tensor, losses: Tensor) -> Samples:
        """Return what scorers that look at samples are told of these."""
        chosen = uids.tolist()
        tokens = torch.tensor([self.records.tokens[uid] for uid in chosen], dtype=torch.int64)
        return Samples(uids, losses, tokens, [self.records.sources[uid] for uid in chosen], _no_texts)


def rescore_pool(
    pool: StoredPool,
    scorers: Sequence[Scorer],
    targets: Targets,
    part: FitPart,
    folder: Path,
    place: Prefer = "auto",
    how: Aggregate = "sum",
) -> Scored:
    """Score stored samples with any scorers, or what of it is not yet done in `folder`.

    Args:
        pool: the store.
        scorers: those to run.
        targets: what is scored for.
        part: the samples that P is made from: the same as in a pass over the pool.
        folder: the run folder.
        place: where curvature is gathered.
        how: how the scores of blocks are put together.

    Returns:
        The scores; samples that are lacking come last, with their losses and no scores.

    Raises:
        ValueError: no sample to fit on, scorers that have no room, or ones that need the targets' samples.
    """
    if comparing := feature_scorers(scorers):
        raise ValueError(comparing[0].refusal)
    fit, scale = part.draw([uid for uid in pool.records.usable() if uid not in pool.excluded])
    sources = FitSources(pool.source(fit), pool.source(scale))
    scored = score_pool(StoreSource(pool.store, pool.keep), sources, targets, scorers, folder, place=place, how=how)
    assert scored is not None  # there are no other jobs
    nobody = pool.samples(scored.uids[:0], scored.losses[:0])  # the targets' gradients are stored, not their samples
    samples = pool.samples(scored.uids, scored.losses)
    return _with_lacking(scored.with_samples(scorers, samples, dict.fromkeys(targets.names, nobody)), pool)


def _no_texts() -> Sequence[str]:
    raise ValueError("a gradient store keeps no texts; run scorers that read them with `vlmsel score`")


def _with_lacking(scored: Scored, pool: StoredPool) -> Scored:
    losses = torch.tensor([loss for _, loss in pool.lacking.values()], dtype=scored.losses.dtype)
    reasons = {uid: why for uid, (why, _) in pool.lacking.items()}
    return replace(
        scored,
        uids=torch.cat([scored.uids, torch.tensor([*pool.lacking], dtype=torch.int64)]),
        losses=torch.cat([scored.losses, losses]),
        scores=pad(scored.scores, (0, len(losses)), value=float("nan")),
        left_out={**scored.left_out, **reasons, **pool.records.reasons},
    )


def read_uids(path: str, records: int) -> set[int]:
    """Read a JSON list of uids.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is not a list of uids of a pool of so many records.
    """
    listed = runs.read_json(path)
    if not isinstance(listed, list):
        raise ValueError(f"{path}: expected a JSON list of uids, such as [3, 17], got {type(listed).__name__}")
    wrong = [number for number, uid in enumerate(listed) if type(uid) is not int or not 0 <= uid < records]
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of {len(listed)} entries are no uids of the pool, the first: "
            f"entry {wrong[0] + 1}, {listed[wrong[0]]!r}; uids are whole numbers from 0 to {records - 1}"
        )
    return set(listed)
