"""Run scorers on a gradient store, without the model: others, other damping, other fit samples, samples left out.

The passes are those over a pool, and the numbers theirs to the rounding of the store's dtype. With a projection,
scorers run in the projected space: inner products are right on average, and curvature is that of projected gradients.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vlmsel import runs
from vlmsel.gradients.store.format import FINISHED, TARGETS
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.gradients.store.records import Records, read_left_out
from vlmsel.scorers import Samples, Scorer
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.memory_plan import Prefer
from vlmsel.scoring.passes import FitPart
from vlmsel.scoring.pool_pass import Scored, score_pool
from vlmsel.scoring.source import StoreSource


@dataclass(frozen=True)
class StoredPool:
    """A store with what is known of its pool's records.

    Attributes:
        store: the store.
        records: the pool's records.
        lacking: samples without scores: why, and the loss of each: those that the store lacks, and those left out.
        excluded: uids of samples that are neither fitted on nor scored.
    """

    store: GradientStore
    records: Records
    lacking: Mapping[int, tuple[str, float]]
    excluded: set[int]

    @classmethod
    def open(cls, folder: str, device: str = "cpu", leave_out: str | None = None) -> StoredPool:
        """Open a store; `leave_out` is a JSON list of uids that are neither fitted on nor scored.

        Raises:
            FileNotFoundError, ValueError: it is no finished store, or the list cannot be used.
        """
        store = GradientStore.open(folder, device)
        records = Records.read(store.folder, store.settings)
        uids = read_uids(leave_out, len(records)) if leave_out else set()
        losses = dict(zip(store.uids.tolist(), store.losses.tolist(), strict=True))
        why = f"left out by {leave_out}"
        lacking = read_left_out(store.folder) | {uid: (why, losses[uid]) for uid in uids if uid in losses}
        found = cls(store, records, lacking, uids)
        if not found.keep():
            raise ValueError(f"{leave_out}: leaves none of the {len(store.uids)} samples of {folder}; list fewer uids")
        return found

    def keep(self) -> set[int]:
        """Return the samples that are scored."""
        return set(self.store.uids.tolist()) - self.excluded

    def reasons(self) -> dict[int, str]:
        """Say why records of the pool have no score."""
        return {**{uid: why for uid, (why, _) in self.lacking.items()}, **self.records.reasons}

    def inputs(self) -> dict[str, str]:
        """Name what scores depend on beside the configuration, by its content."""
        files = {name: runs.file_hash(self.store.folder / name) for name in (FINISHED, TARGETS)}
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


def rescore_pool(
    pool: StoredPool,
    scorers: Sequence[Scorer],
    targets: Targets,
    part: FitPart,
    folder: Path,
    place: Prefer = "auto",
) -> Scored:
    """Score stored samples with any scorers, or what of it is not yet done in `folder`.

    Args:
        pool: the store.
        scorers: those to run.
        targets: what is scored for.
        part: the samples that P is made from: the same as in a pass over the pool.
        folder: the run folder.
        place: where curvature is gathered.

    Raises:
        ValueError: no sample to fit on, or scorers that have no room.
    """
    keep = pool.keep()
    fit, scale = part.draw([uid for uid in pool.records.usable() if uid not in pool.excluded])
    sources = FitSources(_source(pool, keep, fit, "fit"), _source(pool, keep, scale, "scale"))
    scored = score_pool(StoreSource(pool.store, keep), sources, targets, scorers, folder, place=place)
    assert scored is not None  # there are no other jobs
    scored = scored.with_samples(scorers, _samples(pool, scored.uids, scored.losses), _nobody(targets.names))
    return _with_lacking(scored, pool)


def _source(pool: StoredPool, keep: Collection[int], uids: Sequence[int], what: str) -> StoreSource:
    source = StoreSource(pool.store, set(keep).intersection(uids), what)
    if not source.sizes:
        raise ValueError("no sample to fit curvature or measure damping on; give at least one uid")
    return source


def _samples(pool: StoredPool, uids: Tensor, losses: Tensor) -> Samples:
    chosen = uids.tolist()
    tokens = torch.tensor([pool.records.tokens[uid] for uid in chosen], dtype=torch.int64)
    return Samples(uids, losses, tokens, [pool.records.sources[uid] for uid in chosen], _no_texts)


def _nobody(names: Sequence[str]) -> dict[str, Samples]:
    """A store has the targets' gradients and nothing of their samples."""
    none = torch.zeros(0, dtype=torch.int64)
    return {name: Samples(none, torch.zeros(0), none, [], _no_texts) for name in names}


def _no_texts() -> Sequence[str]:
    raise ValueError("a gradient store keeps no texts; run scorers that read them with `vlmsel score`")


def _with_lacking(scored: Scored, pool: StoredPool) -> Scored:
    """Add the samples that the store lacks, with their losses and no scores."""
    uids = torch.tensor([*pool.lacking], dtype=torch.int64)
    losses = torch.tensor([loss for _, loss in pool.lacking.values()], dtype=scored.losses.dtype)
    none = scored.scores.new_full((len(scored.names), len(uids)), float("nan"))
    return replace(
        scored,
        uids=torch.cat([scored.uids, uids]),
        losses=torch.cat([scored.losses, losses]),
        scores=torch.cat([scored.scores, none], 1),
        left_out=scored.left_out | pool.reasons(),
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
