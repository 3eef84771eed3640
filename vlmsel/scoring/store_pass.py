"""Pass a pool once and keep its per-sample gradients in a gradient store, with the targets' mean gradients.

Shards follow the chunks of the score pass; a chunk whose gradients would fill the memory is cut into several. A shard's
number is that of its first batch. A pass that was killed goes on behind the shards that are there, and makes the same
bytes. Processes, and jobs that take shares, deal the chunks as in the score pass.

Samples that are not finite are left out and listed in the shard. Scores of the same run do not depend on whether
gradients are stored: this pass keeps its findings to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmsel import processes
from vlmsel.gradients.projection import Projection
from vlmsel.gradients.store.format import StoreSettings, shard_path
from vlmsel.gradients.store.writer import StoreWriter
from vlmsel.scoring.batches import progress_bar
from vlmsel.scoring.curvature import Targets
from vlmsel.scoring.pool_pass import Share
from vlmsel.scoring.pool_table import Records
from vlmsel.scoring.source import Gradients, GradientSource, Read

SHARD_BYTES = 2e9  # of gradients that wait in memory until their shard is written


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
    """Write a gradient store of a pool with its records, or what of it is not there; finish it when all shards are.

    Args:
        spec: where and how.
        pool: the samples, in the batches that they are scored in.
        targets: what is scored for.
        records: what the score table says of the pool's records.
        share: the part of the chunks that this job does.
        about: digests of what the gradients come from.
        origin: what the targets were made from, JSON-able; targets in the store that were made from this stay.

    Raises:
        ValueError: the folder holds something else, the disk is too small, or a target has no finite gradient.
    """
    small = None if spec.projection is None else Projection(spec.projection, spec.projection)
    known = {**about, "records": len(records), "plan": pool.digest(range(len(pool.sizes)))}
    settings = StoreSettings(tuple(pool.blocks), spec.dtype, small, known)
    writer = StoreWriter(Path(spec.folder), settings)
    share = share.by(pool.windows)
    processes.wait()
    if processes.is_main():
        writer.begin(sum(pool.sizes), records.to_json())
    processes.wait()
    _write_targets(targets, writer, origin)
    spans = shard_spans(pool.sizes, settings.sample_bytes, share.chunk)
    _write_shards(pool, writer, [span for span in spans if share.has(span.start)])
    processes.wait()
    if processes.is_main() and all(shard_path(writer.folder, span.start).is_file() for span in spans):
        writer.finish([span.start for span in spans])
        size = sum(path.stat().st_size for path in writer.folder.rglob("*") if path.is_file())
        what = f"{sum(pool.sizes)} samples on {len(pool.blocks)} blocks"
        print(f"{spec.folder}: gradients of {what}, {size / 1e9:.3g} GB")
    processes.wait()


def shard_spans(sizes: Sequence[int], each: int, chunk: int) -> list[range]:
    """Say which batches each shard holds: those of a chunk, or as many of them as `SHARD_BYTES` has room for.

    Args:
        sizes: samples of each batch.
        each: bytes of a sample.
        chunk: batches of a chunk.
    """
    spans: list[range] = []
    held = 0
    for number, size in enumerate(sizes):
        held += each * size
        if number % chunk == 0 or held > SHARD_BYTES:
            spans.append(range(number, number + 1))
            held = each * size
        else:
            spans[-1] = range(spans[-1].start, number + 1)
    return spans


def _write_targets(targets: Targets, writer: StoreWriter, origin: Any) -> None:
    """Write the targets' mean gradients unless those of the same origin are there."""
    if all(processes.gather(writer.has_targets(targets.names, origin))):
        return
    v = targets.means()
    if processes.is_main():
        writer.write_targets(targets.names, v, origin)
    processes.wait()


def _write_shards(pool: GradientSource, writer: StoreWriter, spans: Sequence[range]) -> None:
    """Write shards, but for those that are there."""
    sizes = [pool.sizes[number] for span in spans for number in span]
    with progress_bar("store pass", sizes) as bar, pool.gradients() as read:
        for span in spans:
            if writer.has_shard(span.start):
                bar.update(sum(pool.sizes[number] for number in span))
            else:
                _write_shard(span, read, writer, bar.update)


def _write_shard(span: range, read: Read[Gradients], writer: StoreWriter, note: Callable[[int], Any]) -> None:
    packed: list[dict[str, Tensor]] = []
    left_out: dict[int, tuple[str, float]] = {}
    for found in (found for pieces in read(span) for found in pieces):
        note(len(found.uids))
        kept, bad = found.clean()
        losses = dict(zip(found.uids.tolist(), found.losses.tolist(), strict=True))
        left_out |= {uid: (why, losses[uid]) for uid, why in bad.items()}
        if len(kept.uids):
            packed.append(writer.packer.pack(kept.uids, kept.losses, kept.factors))
    writer.write_shard(span.start, packed, left_out)
