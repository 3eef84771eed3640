"""Pass a pool once and keep its per-sample gradients in a gradient store, with the targets' mean gradients.

Shards follow the chunks of the score pass; a chunk whose gradients would fill the memory is cut into several. A shard's
number is that of its first batch. A pass that was killed goes on behind the shards that are there, and makes the same
bytes. Processes, and jobs that take shares, deal the chunks as in the score pass.

Samples that are not finite are left out and listed beside the shard. Scores of the same run do not depend on whether
gradients are stored: this pass keeps its findings to itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlmsel import processes, runs
from vlmsel.gradients.store.format import StoreSettings, shard_path, store_bytes
from vlmsel.gradients.store.records import LeftOut, write_left_out
from vlmsel.gradients.store.writer import StoreWriter
from vlmsel.scoring import pool_pass as run
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.curvature import Pass, Streams, _targets
from vlmsel.scoring.pool_pass import Share
from vlmsel.scoring.score_pass import Backward, Bad, Gradients, backward, clean

SHARD_BYTES = 2e9  # of gradients that wait in memory until their shard is written
TARGETS_FROM = "targets_from.json"


def store_pool(
    job: Pass, plan: BatchPlan, streams: Streams, writer: StoreWriter, share: Share, origin: Any = None
) -> bool:
    """Write what of a store is not there; finish it when all shards are.

    Args:
        job: model, objective and blocks.
        plan: the batches of the pool, as they are scored.
        streams: has the targets' batches.
        writer: the store's, with `job.blocks`.
        share: the part of the chunks that this job does.
        origin: what the targets were made from, JSON-able; targets in the store that were made from this stay.

    Returns:
        Whether the store is finished.

    Raises:
        ValueError: a target has no finite gradient, or the store has shards of other samples.
    """
    job = replace(job, bad=Bad())
    job.model.eval()
    _write_targets(job, streams, writer, origin)
    spans = shard_spans(plan, writer.settings)
    _write_shards(job, plan, [span for span in spans if share.has(span.start // run.CHUNK)], writer)
    processes.wait()
    done = all(shard_path(writer.folder, span.start).is_file() for span in spans)
    if done and processes.is_main():
        writer.finish([span.start for span in spans])
    processes.wait()
    return done


def shard_spans(plan: BatchPlan, settings: StoreSettings) -> list[range]:
    """Say which batches each shard holds: those of a chunk, or as many of them as `SHARD_BYTES` has room for."""
    each = store_bytes(1, settings.blocks, settings.dtype, settings.projection)
    spans: list[range] = []
    held = 0.0
    for number, size in enumerate(plan.sizes):
        held += each * size
        if number % run.CHUNK == 0 or held > SHARD_BYTES:
            spans.append(range(number, number + 1))
            held = each * size
        else:
            spans[-1] = range(spans[-1].start, number + 1)
    return spans


def _write_targets(job: Pass, streams: Streams, writer: StoreWriter, origin: Any) -> None:
    """Write the targets' mean gradients unless those of the same origin are there."""
    names, path = list(streams.targets), writer.folder / TARGETS_FROM
    there = writer.has_targets(names) and path.is_file() and runs.read_json(path) == origin
    if all(processes.gather(there)):
        return
    means = _targets(job, streams)
    if processes.is_main():
        path.unlink(missing_ok=True)  # says nothing wrong while the targets change
        writer.write_targets(names, means)
        runs.write_json(path, origin)
    processes.wait()


def _write_shards(job: Pass, plan: BatchPlan, spans: list[range], writer: StoreWriter) -> None:
    """Write these shards, but for those that are there."""
    total = sum(sum(plan.sizes[span.start : span.stop]) for span in spans)
    quiet = not processes.is_main()
    with (
        tqdm(total=total, desc="store pass", unit="sample", delay=2, dynamic_ncols=True, disable=quiet) as bar,
        backward(job.model, job.objective, job.blocks, job.budget) as backwards,
    ):
        for span in spans:
            if writer.has_shard(span.start):
                bar.update(sum(plan.sizes[span.start : span.stop]))
            else:
                _write_shard(plan, span, backwards, writer, bar)


def _write_shard(plan: BatchPlan, span: range, backwards: Backward, writer: StoreWriter, bar: tqdm) -> None:
    left: LeftOut = {}
    uids, losses, packed = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0)], []
    for found in (found for batch in plan.batches(span.start, span.stop) for found in backwards(batch)):
        bar.update(len(found.uids))
        kept, kept_losses, gradients = _packed(found, writer, left)
        if len(kept):
            uids.append(kept)
            losses.append(kept_losses)
            packed.append(gradients)
    write_left_out(writer.folder, span.start, left)
    writer.write_shard(span.start, torch.cat(uids), torch.cat(losses), packed)


def _packed(found: Gradients, writer: StoreWriter, left: LeftOut) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Return uids, losses and packed gradients of the samples that are finite, and note the others in `left`."""
    bad = Bad()
    factors = clean(found, bad)
    uids, losses = found.uids.cpu(), found.losses.float().cpu()
    keep = torch.tensor([uid not in bad.reasons for uid in uids.tolist()], dtype=torch.bool)
    left.update(
        (uid, (bad.reasons[uid], loss)) for uid, loss in zip(uids[~keep].tolist(), losses[~keep].tolist(), strict=True)
    )
    if not bool(keep.any()):
        return uids[keep], losses[keep], {}
    return uids[keep], losses[keep], writer.pack(uids[keep], factors)
