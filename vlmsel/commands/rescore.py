"""Score a pool from the gradients that `vlmsel score --store` kept: no model, any scorers and settings."""

from __future__ import annotations

from vlmsel import processes, progress, runs
from vlmsel.commands.folders import open_together
from vlmsel.commands.options import FitOptions, PlaceOptions
from vlmsel.models.devices import pick_device
from vlmsel.scorers.load import digests, load_scorers
from vlmsel.scoring.aggregate import Aggregate
from vlmsel.scoring.pool_table import write_scores
from vlmsel.scoring.rescore import StoredPool, rescore_pool


def rescore(
    out: str,
    store: str,
    scorers: tuple[str, ...] = ("HyperINF", "DataInf", "LiSSA", "TracIn"),
    targets: tuple[str, ...] | None = None,
    leave_out: str | None = None,
    aggregate: Aggregate = "sum",
    fit: FitOptions = FitOptions(),
    place: PlaceOptions = PlaceOptions(),
    config: str = "",
) -> None:
    """Write `out/scores.parquet` as `vlmsel score` does. Lowest = most helpful.

    Args:
        out: the run folder.
        store: the folder that `vlmsel score --store` wrote.
        scorers: names (HyperINF), names with settings (HyperINF(damping=10)) or import paths (my.module:MyScorer).
        targets: which of the store's targets; all when left out.
        leave_out: a JSON list of uids that are neither fitted on nor scored.
        aggregate: how blocks' scores add up: sum, scaled (each block by its own scale), rank (mean rank) or vote.
        fit: which samples curvature is fitted on.
        place: where it runs.
        config: the resolved configuration as text.
    """
    if processes.count() > 1:
        raise ValueError("rescore runs as one process; start it without torchrun or accelerate launch")
    loaded = load_scorers(scorers)
    pool = StoredPool.open(store, str(pick_device(place.device)), leave_out)
    wanted = pool.targets(targets)
    folder = open_together(out, config)
    runs.same_inputs(folder, pool.inputs() | digests(loaded))
    scored = rescore_pool(pool, loaded, wanted, fit.part(), folder, place.curvature_on, aggregate)
    runs.report_left_out(folder / "skipped.json", scored.left_out, len(pool.records), store)
    kept = pool.store.about
    about = {name: kept[name] for name in ("pool", "pool_sha256")} | {"config": config}
    path = folder / "scores.parquet"
    origin = {**kept, "folder": store, "dtype": pool.store.settings.dtype}
    write_scores(path, pool.records, scored, {**about, "store": origin})
    count = len(scored.uids) - len(pool.lacking)
    progress.ended(
        f"{path}: {count} samples, {len(scored.names)} scores each (influence: lowest = most helpful)",
        then=f"vlmsel select --scores {out} --pool {kept['pool']} --scorer {loaded[0].name} --rule top --out CHOSEN",
    )
