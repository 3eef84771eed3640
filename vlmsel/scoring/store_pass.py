"""Pass a pool once and keep its per-sample gradients in a gradient store, with the targets' mean gradients.

Shards follow the chunks of the score pass; a chunk whose gradients would fill the memory is cut into several. A shard's
number is that of its first batch. A pass that was killed goes on behind the shards that are there, and makes the same
bytes. Processes, and jobs that take shares, deal the chunks as in the score pass.

Samples that are not finite are left out and listed beside the shard. Scores of the same run do not depend on whether
gradients are stored: this pass keeps its findings to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vlmsel import processes, runs
from vlmsel.gradients.projection import Projection
from vlmsel.gradients.store.format import StoreSettings, shard_path, store_bytes
from vlmsel.gradients.store.records import Records, write_left_out
from vlmsel.gradients.store.writer import StoreWriter
from vlmsel.scoring.batches import progress_bar
from vlmsel.scoring.curvature import Targets
from vlmsel.scoring.pool_pass import Share
from vlmsel.scoring.source import Gradients, GradientSource, Read

SHARD_BYTES = 2e9  # of gradients that wait in memory until their shard is written
TARGETS_FROM = "targets_from.json"


@dataclass(frozen=True)
class StoreSpec:
    """Where a store is written and how: its folder, the dtype, and how many rows and columns projected blocks have."""

    folder: str
    dtype: str = "float32"
    projection: int | None = None


def write_store(
    spec: StoreSpec, pool: GradientSource, targets: Targets, records: Records, share: Share, about: Mapping[str, Any],
    origin: Any,
) -> None:  # fmt: skip
    """Write a gradient store of a pool with its records, or what of it is not there.

    Args:
        spec: where and how.
        pool: the samples, in the batches that they are scored in.
        targets: what is scored for.
        records: what the score table says of the pool's records.
        share: the part of the chunks that this job does.
        about: digests of what the gradients come from.
        origin: what the targets were made from, JSON-able; targets in the store that were made from this stay.

    Raises:
        ValueError: the folder holds something else, or the disk is too small.
    """
    small = None if spec.projection is None else Projection(spec.projection, spec.projection)
    numbers = range(len(pool.sizes))
    known = {**about, "records": len(records), "plan": pool.digest(numbers)}
    writer = None
    if processes.is_main():
        writer = StoreWriter(spec.folder, pool.blocks, spec.dtype, small, known, sum(pool.sizes))
        records.write(writer.folder, writer.settings)
    processes.wait()
    writer = writer or StoreWriter(spec.folder, pool.blocks, spec.dtype, small, known)
    if store_pool(pool, targets, writer, share, origin) and processes.is_main():
        size = sum(path.stat().st_size for path in writer.folder.rglob("*") if path.is_file())
        what = f"{sum(pool.sizes)} samples on {len(pool.blocks)} blocks"
        print(f"{spec.folder}: gradients of {what}, {size / 1e9:.3g} GB")


def store_pool(
    pool: GradientSource,
    targets: Targets,
    writer: StoreWriter,
    share: Share,
    origin: Any = None,
) -> bool:
    """Write what of a store is not there; finish it when all shards are.

    Args:
        pool: the samples, in the batches that they are scored in.
        targets: what is scored for.
        writer: the store's, with the source's blocks.
        share: the part of the chunks that this job does.
        origin: what the targets were made from, JSON-able; targets in the store that were made from this stay.

    Returns:
        Whether the store is finished.

    Raises:
        ValueError: a target has no finite gradient, or the store has shards of other samples.
    """
    _write_targets(targets, writer, origin)
    spans = shard_spans(pool, writer.settings, share.chunk)
    own = [span for span in spans if share.has(span.start)]
    sizes = [pool.sizes[number] for span in own for number in span]
    with progress_bar("store pass", sizes) as bar, pool.gradients() as read:
        for span in own:
            if writer.has_shard(span.start):
                bar.update(sum(pool.sizes[number] for number in span))
            else:
                _write_shard(span, read, writer, bar.update)
    processes.wait()
    done = all(shard_path(writer.folder, span.start).is_file() for span in spans)
    if done and processes.is_main():
        writer.finish([span.start for span in spans])
    processes.wait()
    return done


def shard_spans(pool: GradientSource, settings: StoreSettings, chunk: int) -> list[range]:
    """Say which batches each shard holds: those of a chunk, or as many of them as `SHARD_BYTES` has room for."""
    each = store_bytes(1, settings.blocks, settings.dtype, settings.projection)
    spans: list[range] = []
    held = 0.0
    for number, size in enumerate(pool.sizes):
        held += each * size
        if number % chunk == 0 or held > SHARD_BYTES:
            spans.append(range(number, number + 1))
            held = each * size
        else:
            spans[-1] = range(spans[-1].start, number + 1)
    return spans


def _write_targets(targets: Targets, writer: StoreWriter, origin: Any) -> None:
    """Write the targets' mean gradients unless those of the same origin are there."""
    path = writer.folder / TARGETS_FROM
    there = writer.has_targets(list(targets.names)) and path.is_file() and runs.read_json(path) == origin
    if all(processes.gather(there)):
        return
    v = targets.v()
    if processes.is_main():
        path.unlink(missing_ok=True)  # says nothing wrong while the targets change
        writer.write_targets(list(targets.names), v)
        runs.write_json(path, origin)
    processes.wait()


def _write_shard(span: range, read: Read[Gradients], writer: StoreWriter, note: Callable[[int], Any]) -> None:
    left: dict[int, tuple[str, float]] = {}
    uids, losses, packed = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0)], []
    for found in (found for pieces in read(span) for found in pieces):
        note(len(found.uids))
        kept, bad = found.clean()
        known = dict(zip(found.uids.tolist(), found.losses.float().tolist(), strict=True))
        left |= {uid: (why, known[uid]) for uid, why in bad.items()}
        if len(kept.uids):
            uids.append(kept.uids.cpu())
            losses.append(kept.losses.float().cpu())
            packed.append(writer.pack(uids[-1], kept.factors))
    write_left_out(writer.folder, span.start, left)
    writer.write_shard(span.start, torch.cat(uids), torch.cat(losses), packed)
