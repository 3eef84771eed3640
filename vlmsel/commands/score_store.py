"""`vlmsel score` with a gradient store: writing one while a pool is scored, and scoring from one without the model."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmsel import processes, runs
from vlmsel.commands.inputs import Data, digest, open_together, pick_device
from vlmsel.gradients.projection import Projection
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.gradients.store.records import Records, read_left_out
from vlmsel.gradients.store.writer import StoreWriter
from vlmsel.scorers import Scorer
from vlmsel.scoring.batches import BatchPlan, seeded_part
from vlmsel.scoring.curvature import Pass, Streams
from vlmsel.scoring.pool_pass import Share
from vlmsel.scoring.store_pass import store_pool
from vlmsel.scoring.store_scores import score_store
from vlmsel.scoring.table import write_table

NEEDED = ("model", "pool", "targets")
OF_THE_STORE = ("targets_of", "leave_out")  # and scorers, fit_samples, scale_samples, seed and device, as in any run
OF_WRITING = ("store_dtype", "store_projection")
BOTH_WAYS = (*OF_THE_STORE, "from_store", "out", "scorers", "fit_samples", "scale_samples", "seed", "device", "config")


def check_options(command: Callable[..., None], given: Mapping[str, Any]) -> None:
    """Refuse options of `score` that make no sense together.

    Raises:
        ValueError: names them.
    """
    defaults = {name: one.default for name, one in inspect.signature(command).parameters.items()}
    changed = [name for name, default in defaults.items() if given[name] != default]
    if given["from_store"] is not None:
        _refuse([name for name in changed if name not in BOTH_WAYS], "the gradient store decides", "--from_store")
        return
    _refuse([name for name in changed if name in OF_THE_STORE], "without --from_store", "a pass over the pool")
    if given["store"] is None:
        _refuse([name for name in changed if name in OF_WRITING], "without --store DIR", "a pass over the pool")
    missing = [f"--{name}" for name in NEEDED if given[name] is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} missing; score needs --model, --pool and a target such as --targets.vqav2 FILE "
            "(and --images for samples that have some), or --from_store DIR alone"
        )


def _refuse(names: Sequence[str], why: str, where: str) -> None:
    if names:
        raise ValueError(f"{', '.join(f'--{name}' for name in names)}: no meaning for {where} ({why}); leave it out")


# Writing


def store_gradients(
    folder: str,
    dtype: str,
    projection: int | None,
    job: Pass,
    plan: BatchPlan,
    streams: Streams,
    pool: Data,
    targets: Mapping[str, Data],
    share: Share,
    about: Mapping[str, Any],
) -> None:
    """Write a gradient store of the pool, or what of it is not there; `about` says more of where it comes from.

    Raises:
        ValueError: the folder holds something else, or the disk is too small.
    """
    known = {
        "model": digest(job.model),  # type: ignore[arg-type]
        "pool": str(pool.path),
        "pool_sha256": pool.sha256,
        "records": pool.total,
        "plan": _hash([list(group) for group in plan.groups]),
        **about,
    }
    small = None if projection is None else Projection(projection, projection)
    origin = {name: [data.sha256, _hash(data.samples.usable())] for name, data in targets.items()}
    writer = None
    if processes.is_main():
        writer = StoreWriter(folder, job.blocks, dtype, small, known, sum(plan.sizes))
        pool_records(pool).write(writer.folder, writer.settings)
    processes.wait()
    writer = writer or StoreWriter(folder, job.blocks, dtype, small, known)
    if store_pool(job, plan, streams, writer, share, origin) and processes.is_main():
        size = sum(path.stat().st_size for path in writer.folder.rglob("*") if path.is_file())
        print(f"{folder}: gradients of {sum(plan.sizes)} samples on {len(job.blocks)} blocks, {size / 1e9:.3g} GB")


def pool_records(pool: Data) -> Records:
    """Return what the score table says of a pool's records beside their scores."""
    sources, tokens = [""] * pool.total, [0] * pool.total
    for sample, length in zip(pool.samples.samples, pool.samples.lengths(), strict=True):
        sources[sample.uid], tokens[sample.uid] = sample.source, length
    return Records(sources, tokens, {problem.uid: problem.reason for problem in pool.problems})


def _hash(content: Any) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


# Reading


def score_from_store(
    folder: str,
    scorers: Sequence[Scorer],
    targets: Sequence[str] | None,
    leave_out: str | None,
    parts: tuple[int | None, int | None, int],
    device: str,
    out: str,
    config: str,
) -> None:
    """Write `out/scores.parquet` from stored gradients, as a run over the pool without the samples of `leave_out`.

    Args:
        folder: the store.
        scorers: those to run.
        targets: names of the store's targets; all when None.
        leave_out: a JSON list of uids that are neither fitted on nor scored.
        parts: how many samples curvature is fitted, and damping measured, on (all when None), and the seed of both.
        device: where it runs.
        out: the run folder.
        config: the resolved configuration as text.
    """
    if processes.count() > 1:
        raise ValueError("--from_store runs in one process; start it without torchrun or accelerate")
    store = GradientStore.open(folder, str(pick_device(device)))
    records, lacking = Records.read(store.folder, store.settings), read_left_out(store.folder)
    excluded = read_uids(leave_out, len(records)) if leave_out else set()
    usable = [uid for uid in records.usable() if uid not in excluded]
    stored = set(store.uids.tolist())
    keep = stored - excluded
    if not keep:
        raise ValueError(f"{leave_out}: leaves none of the {len(stored)} samples of {folder}; list fewer uids")
    fit, scale = _drawn(usable, *parts)
    run_folder = open_together(out, config)
    details: dict[str, Any] = {}
    uids, names, scores = score_store(
        store, scorers, targets, stored.intersection(fit), keep, scale=stored.intersection(scale), details=details
    )
    reasons = {**{uid: why for uid, (why, _) in lacking.items()}, **records.reasons}
    reasons |= {uid: f"left out by {leave_out}" for uid in excluded}
    _report(run_folder / "skipped.json", reasons, len(records))
    known = {name: store.about[name] for name in ("pool", "pool_sha256")}
    about = {**known, "config": config, "environment": runs.environment(), "details": details}
    about["store"] = {**store.about, "folder": folder, "dtype": store.settings.dtype}
    path = run_folder / "scores.parquet"
    losses = _losses(store, {uid: loss for uid, (_, loss) in lacking.items()}, len(records))
    write_table(path, _columns(records, losses, uids, names, scores), about)
    print(f"{path}: {len(uids)} samples, {len(names)} scores each (influence: lowest = most helpful)")


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


def _drawn(usable: Sequence[int], fit: int | None, scale: int | None, seed: int) -> tuple[list[int], list[int]]:
    """Draw the samples that curvature is fitted, and damping measured, on: the same as in a pass over the pool."""
    chosen = seeded_part(usable, fit, seed)
    return chosen, seeded_part(chosen, scale, seed + 1)


def _report(path: Path, reasons: Mapping[int, str], total: int) -> None:
    if not reasons:
        path.unlink(missing_ok=True)
        return
    runs.write_json(path, [{"uid": uid, "reason": reasons[uid]} for uid in sorted(reasons)])
    print(f"{path}: {len(reasons)} of {total} samples left out")


def _losses(store: GradientStore, lacking: Mapping[int, float], total: int) -> Tensor:
    """Return the loss of each record, NaN where none is known. [total] float32"""
    losses = torch.full((total,), float("nan"))
    losses[store.uids] = store.losses
    losses[torch.tensor([*lacking], dtype=torch.int64)] = torch.tensor([*lacking.values()])
    return losses


def _columns(
    records: Records, losses: Tensor, uids: Tensor, names: Sequence[tuple[str, str]], scores: Tensor
) -> dict[str, Sequence[Any]]:
    """Lay the table out, one row per record of the pool; a sample without a score has NaN."""
    wide = torch.full((len(names), len(records)), float("nan"), dtype=scores.dtype)
    wide[:, uids] = scores
    fixed = {"uid": range(len(records)), "source": records.sources, "tokens": records.tokens, "loss": losses.tolist()}
    return fixed | {f"{scorer}/{target}": row.tolist() for (scorer, target), row in zip(names, wide, strict=True)}
