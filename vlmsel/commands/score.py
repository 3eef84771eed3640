"""Score every sample of a pool by its influence on target tasks: two streamed passes serve all scorers and targets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlmsel import processes, progress, runs
from vlmsel.commands import options
from vlmsel.commands.folders import open_together
from vlmsel.data.dataset import Reading
from vlmsel.data.first_look import tell
from vlmsel.models.open import open_subject
from vlmsel.models.pool import Pool, open_pool
from vlmsel.models.subject import Subject
from vlmsel.scorers.load import digests, load_scorers
from vlmsel.scoring.affinity import NAME as AFFINITIES
from vlmsel.scoring.aggregate import Aggregate
from vlmsel.scoring.checkpoints import Checkpoints
from vlmsel.scoring.first_batch import check_first_batch, tell_left_out
from vlmsel.scoring.passes import Passes
from vlmsel.scoring.pool_pass import Share
from vlmsel.scoring.pool_table import records_of, write_pool_affinities, write_scores
from vlmsel.scoring.store_pass import write_store
from vlmsel.scoring.table import check_target_names
from vlmsel.training.warmup import warmed_up

MOVED = {
    "from_store": "`vlmsel rescore --store DIR` scores from a gradient store",
    "targets_of": "it is --targets of `vlmsel rescore --store DIR`",
    "leave_out": "it is an option of `vlmsel rescore --store DIR`",
}


def score(
    out: str,
    model: str,
    pool: str,
    targets: dict[str, str] | None = None,
    scorers: tuple[str, ...] = ("HyperINF", "DataInf", "LiSSA", "TracIn"),
    blocks: str | None = None,
    against: str | list[str] | None = None,
    aggregate: Aggregate = "sum",
    shard: str | None = None,
    dtype: str = "float32",
    reading: options.ReadingOptions = options.ReadingOptions(),
    beside: options.FeatureOptions = options.FeatureOptions(),
    single: options.TargetOptions = options.TargetOptions(),
    batches: options.BatchOptions = options.BatchOptions(),
    fit: options.FitOptions = options.FitOptions(),
    place: options.PlaceOptions = options.PlaceOptions(),
    sums: options.CheckpointOptions = options.CheckpointOptions(),
    keeping: options.StoreOptions = options.StoreOptions(),
    config: str = "",
) -> None:
    """Write `out/scores.parquet`: one influence per sample, scorer and target. Lowest = most helpful.

    Args:
        out: the run folder.
        model: the folder of a model (aligned, or a text model's: ours, or a Hugging Face causal language model), or a
            preset.
        pool: the samples to score.
        targets: one file of samples per target task, such as `--targets.vqav2 FILE`.
        scorers: names (HyperINF), names with settings (HyperINF(damping=10)) or import paths (my.module:MyScorer).
        blocks: whose gradients count: projector+lora, lora, projector, last-block, or a regular expression on names;
            when left out projector+lora, and for text models lora, or last-block where there are no adapters.
        against: an evaluation file, or a list of them: it is told which target samples ask what it asks.
        aggregate: how blocks' scores add up: sum, scaled (each block by its own scale), rank (mean rank) or vote.
        shard: i/n scores the i-th of n parts of the pool, as independent jobs on one folder do; the job that finds all
            parts done writes the table. Processes started together by torchrun need no shards.
        dtype: float32 or bfloat16, that of the backbones; gradients are summed up in float32 or better. 4bit or 8bit
            packs the language model by bitsandbytes, to score the adapters on it in less memory.
        reading: how samples are read.
        beside: what is read beside the pool.
        single: whether target samples count one by one.
        batches: how samples are put into batches.
        fit: which samples curvature is fitted on.
        place: where it runs.
        sums: checkpoints to sum over.
        keeping: a gradient store beside the scores.
        config: the resolved configuration as text.
    """
    share, files = Share.read(shard), check_target_names(targets or {})
    folder = open_together(out, config, f".{share.index}of{share.of}" if share.of > 1 else "")
    loaded = load_scorers(scorers)
    subject = open_subject(model, place.device, dtype, reading.template)
    subject.turn_pictures(reading.exif)
    if not sums.allow_untrained:
        subject.require_ready(model, ", or pass --allow_untrained true")
    chosen = subject.blocks(blocks)
    tell_left_out(subject, blocks, chosen)
    checkpoints = Checkpoints.open(subject, sums.checkpoints, sums.checkpoint_lrs, loaded, sums.allow_untrained)
    read = reading.reading()
    found = open_pool(subject, pool, read, beside.features, measured=keeping.store is not None)
    found.report(folder / "skipped.json")
    goals = _open_targets(subject, files, beside.target_reading(read), beside.features, folder)
    inputs = {"the model": subject.digest(), **found.inputs("the pool")}
    for name, goal in goals.items():
        inputs |= goal.inputs(f"target {name}")
    runs.same_inputs(folder, inputs | checkpoints.inputs() | digests(loaded))
    datasets = {name: goal.samples for name, goal in goals.items()}
    tell(pool, found.samples.samples, {name: own.samples for name, own in datasets.items()}, against)
    passes = Passes.of(
        subject,
        chosen,
        found.samples,
        datasets,
        batches.batching(),
        fit.part(),
        single.columns if single.each_target else None,
    )
    check_first_batch(subject, chosen, found.samples, batches.batching(), batches.check)
    known = {"pool": pool, "pool_sha256": found.sha256, "blocks": blocks or subject.default_blocks()}
    if keeping.store is not None:
        about = known | {"model": inputs["the model"], "max_length": read.max_length, "loss_on": read.loss_on}
        about |= {"pictures": found.samples.pictures_digest(), "libraries": runs.versions()}
        origin = {name: goal.inputs(name) for name, goal in goals.items()}
        records = records_of(found.samples, found.problems, found.total)
        write_store(keeping.spec(), passes.pool, passes.targets, records, share, about | {"model_dtype": dtype}, origin)
    scored = passes.score(loaded, folder, share, place.curvature_on, checkpoints, aggregate)
    if not processes.is_main():
        return
    if scored is None:
        progress.ended(f"{folder}: shard {shard} is done; the job that ends last writes the table")
        return
    whole = found.measured()
    if scored.left_out or whole.problems != found.problems:
        whole.report(folder / "skipped.json", scored.left_out)
    records = records_of(whole.samples, whole.problems, whole.total)
    path = folder / "scores.parquet"
    # whose gradients are those of samples learnt already
    marks = {"warmed_up": warmed_up(model, found.sha256), "missing": whole.missing}
    about = known | {"config": config, "inputs": inputs}
    write_scores(path, records, scored, about | marks)
    if scored.affinities is not None:
        write_pool_affinities(folder / AFFINITIES, scored.affinities, about, single.columns_dtype)
    single_targets = scored.affinities is not None and loaded[0].name in scored.affinities.of and aggregate == "sum"
    rule = "" if single_targets else " --rule top"
    used = len(scored.uids) - len(scored.left_out)
    count = f"{used}{found.share(used)}"
    lost = f", {whole.total - used} left out ({whole.missing} lack their picture), see {folder / 'skipped.json'}"
    each = f"{len(scored.names)} score{'s'[: len(scored.names) - 1]} each"
    progress.ended(
        f"{path}: {count} samples, {each} (influence: lowest = most helpful)" + (lost if used < whole.total else ""),
        then=f"vlmsel select --scores {out} --pool {pool} --scorer {loaded[0].name}{rule} --fraction 0.05 --out CHOSEN",
    )


def _open_targets(
    subject: Subject, files: Mapping[str, str], reading: Reading, features: str | None, folder: Path
) -> dict[str, Pool]:
    """Read the target sets; samples that cannot be used are reported and left out."""
    opened = {}
    for name, file in files.items():
        try:
            opened[name] = open_pool(subject, file, reading, features)
        except (ValueError, OSError) as problem:
            raise ValueError(f"target {name}: {problem}") from None
        opened[name].report(folder / f"skipped_{name}.json")
    return opened
