"""Score every sample of a pool by its influence on target tasks: two streamed passes serve all scorers and targets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmsel import processes, runs
from vlmsel.commands.inputs import Data, check_counts, digest, open_data, open_model, open_together, without
from vlmsel.commands.score_checkpoints import open_checkpoints, score_checkpoints
from vlmsel.commands.score_plans import Plans
from vlmsel.commands.score_store import check_options, score_from_store, store_gradients
from vlmsel.data.encoding import LossOn
from vlmsel.data.sample import Problem
from vlmsel.gradients import select_blocks
from vlmsel.models.lora import lora_parameters
from vlmsel.models.losses import row_samples, sample_losses
from vlmsel.models.vlm import VLM
from vlmsel.scorers import Scorer
from vlmsel.scorers.load import load_scorer
from vlmsel.scoring.batches import seeded_part
from vlmsel.scoring.curvature import Pass, Streams
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.memory_plan import Prefer
from vlmsel.scoring.pool_pass import Scored, Share, score_pool
from vlmsel.scoring.score_pass import Bad, Objective
from vlmsel.scoring.table import write_table

OBJECTIVE = Objective(sample_losses, row_samples)


def score(
    out: str,
    model: str | None = None,
    pool: str | None = None,
    images: str | None = None,
    targets: dict[str, str] | None = None,
    scorers: tuple[str, ...] = ("HyperINF", "DataInf", "LiSSA", "TracIn"),
    blocks: str | None = None,
    batch_tokens: int = 8192,
    batch_size: int | None = None,
    fit_samples: int | None = None,
    scale_samples: int | None = 512,
    target_images: str | None = None,
    features: str | None = None,
    curvature_on: Prefer = "auto",
    max_length: int = 2048,
    loss_on: LossOn = "answers",
    template: str | None = None,
    each_target: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    workers: int = 0,
    shard: str | None = None,
    allow_untrained: bool = False,
    checkpoints: tuple[str, ...] | None = None,
    checkpoint_lrs: tuple[float, ...] | None = None,
    store: str | None = None,
    store_dtype: str = "float32",
    store_projection: int | None = None,
    from_store: str | None = None,
    targets_of: tuple[str, ...] | None = None,
    leave_out: str | None = None,
    config: str = "",
) -> None:
    """Write `out/scores.parquet`: one influence per sample, scorer and target. Lowest = most helpful.

    With `from_store` the gradients are read, and neither model nor pool is needed.

    Args:
        out: the run folder.
        model: the folder of a model (aligned, or a text model's: ours, or a Hugging Face causal language model), or a
            preset.
        pool: the samples to score, a JSON file in LLaVA format.
        images: the folder that image paths are relative to; not needed when no sample has an image.
        targets: one file in LLaVA format per target task, such as `--targets.vqav2 FILE`.
        scorers: names (HyperINF), names with settings (HyperINF(damping=10)) or import paths (my.module:MyScorer).
        blocks: whose gradients count: projector+lora, lora, projector, last-block, or a regular expression on names;
            when left out projector+lora, and for text models lora, or last-block where there are no adapters.
        batch_tokens: most tokens per forward and backward pass, patches and padding included; halved where memory runs
            out.
        batch_size: most samples per pass; as many as the tokens allow when left out.
        fit_samples: how many samples, drawn with `seed`, curvature is fitted on; all when left out.
        scale_samples: how many fit samples the damping of DataInf is measured on before the pass; all of them when
            null.
        target_images: the image folder of the targets when it is another one.
        features: a folder to keep the tower's features in, so that later passes and runs need neither pictures nor
            tower.
        curvature_on: where curvature is gathered: device, host (memory), disk, or auto, the first that has room.
        max_length: longest sequence in tokens, patches included; what is longer is cut.
        loss_on: what a sample's loss is taken on: its answers, or all of its text.
        template: the conversation template for a Hugging Face language model; text when left out.
        each_target: every sample of the target files is a target of its own, with columns `<Scorer>/<name>:<uid>`.
        seed: draws the fit samples.
        dtype: float32 or bfloat16, that of the backbones; gradients are summed up in float32 or better.
        device: auto, cpu, cuda or cuda:<number>.
        workers: processes that read samples.
        shard: i/n scores the i-th of n parts of the pool, as independent jobs on one folder do; the job that finds all
            parts done writes the table. Processes started together by torchrun need no shards.
        allow_untrained: score with a projector that was never trained (selection before alignment).
        checkpoints: folders of models of the same make: TracIn in any form is also summed over them, in columns
            `<name>.CP/<target>`. `model` takes part only if it is among them.
        checkpoint_lrs: the learning rate at each checkpoint, by which its scores are multiplied.
        store: a folder to keep every sample's gradients in, for other scorers later (`from_store`); a pass of its own.
            Llama-2-7B with LoRA r=64 on q and v has 33.5 million entries, 134 MB per sample in float32: project, or
            choose fewer blocks.
        store_dtype: float32, bfloat16 or float16, of what is stored.
        store_projection: random projection of each block to at most so many rows and columns, such as 16.
        from_store: a folder that `store` wrote: score what it holds, without the model.
        targets_of: which of its targets; all when left out.
        leave_out: a JSON list of uids that are neither fitted on nor scored, with `from_store`.
        config: the resolved configuration as text.
    """
    check_options(score, locals())
    if from_store is not None:
        check_counts(fit_samples=fit_samples, scale_samples=scale_samples)
        parts = fit_samples, scale_samples, seed
        score_from_store(from_store, load_scorers(scorers), targets_of, leave_out, parts, device, out, config)
        return
    assert model is not None and pool is not None and targets is not None
    share = Share.read(shard)
    folder = open_together(out, without(config, "shard"), f".{share.index}of{share.of}" if share.of > 1 else "")
    loaded = load_scorers(scorers)
    _check_targets(targets)
    check_counts(batch_tokens=batch_tokens, batch_size=batch_size, fit_samples=fit_samples, scale_samples=scale_samples)
    vlm = open_model(model, device, dtype, template)
    if not allow_untrained:
        vlm.require_ready(model, ", or pass --allow_untrained true")
    blocks = blocks or default_blocks(vlm)
    chosen = select_blocks(vlm, blocks)
    states = open_checkpoints(vlm, checkpoints, checkpoint_lrs, loaded, allow_untrained)
    plans = Plans(vlm, batch_tokens, batch_size, workers)
    found = open_data(vlm, pool, images, max_length, features, loss_on=loss_on)
    found.report(folder / "skipped.json")
    goals = _open_targets(vlm, targets, target_images or images, max_length, folder, features, loss_on)
    inputs = _inputs(vlm, {"the pool": found, **{f"target {name}": goal for name, goal in goals.items()}})
    _require_same(folder, inputs | states.inputs())
    fit = seeded_part(found.samples.usable(), fit_samples, seed)
    samples = {name: goal.samples for name, goal in goals.items()}
    scale = plans.of(found.samples, seeded_part(fit, scale_samples, seed + 1))
    streams = Streams(plans.of(found.samples, fit), scale, plans.targets(samples, each_target))
    job = Pass(vlm, OBJECTIVE, chosen, Bad(), Budget(), curvature_on)
    if store is not None:
        about = {"blocks": blocks, "max_length": max_length, "model_dtype": dtype, "loss_on": loss_on}
        whole = plans.of(found.samples)
        store_gradients(store, store_dtype, store_projection, job, whole, streams, found, goals, share, about)
    scored = score_pool(job, plans.of(found.samples), streams, loaded, folder, share)
    scored = score_checkpoints(states, job, plans.of(found.samples), streams, scored, found, folder, share)
    if not processes.is_main():
        return
    if scored is None:
        print(f"{folder}: shard {shard} is done; the job that ends last writes the table")
        return
    if job.bad.reasons:
        found.report(folder / "skipped.json", [Problem(uid, reason) for uid, reason in job.bad.reasons.items()])
    path = folder / "scores.parquet"
    about = {"pool": pool, "pool_sha256": found.sha256, "config": config, "environment": runs.environment()}
    write_table(path, _columns(found, scored), {**about, "blocks": blocks, "details": scored.details})
    count = len(scored.uids) - len(job.bad.reasons)
    print(f"{path}: {count} samples, {len(scored.names)} scores each (influence: lowest = most helpful)")


def default_blocks(model: VLM) -> str:
    """Return the blocks that are scored on when none are named."""
    if model.vision is not None:
        return "projector+lora"
    return "lora" if lora_parameters(model) else "last-block"


def load_scorers(names: Sequence[str]) -> list[Scorer]:
    """Load scorers; their names must tell them apart, for they name the table's columns.

    Raises:
        ValueError: none given, one does not load, or two have the same name.
    """
    if not names:
        raise ValueError("no scorer given; name at least one, such as HyperINF")
    loaded = [load_scorer(name) for name in _whole(names)]
    twice = {scorer.name for scorer in loaded if [s.name for s in loaded].count(scorer.name) > 1}
    if twice:
        raise ValueError(f"two scorers are called {min(twice)!r}; give one another name, such as HyperINF(name='mine')")
    return loaded


def _whole(names: Sequence[str]) -> list[str]:
    """Put names together that YAML has cut at commas within their settings: [A(x=1, y=2)] is two texts to it."""
    whole: list[str] = []
    for name in names:
        if whole and whole[-1].count("(") > whole[-1].count(")"):
            whole[-1] += f", {name}"
        else:
            whole.append(name)
    return whole


def _inputs(model: VLM, files: Mapping[str, Data]) -> dict[str, str]:
    """Name what scores depend on besides the configuration, by its content."""
    found = {"the model": digest(model)}
    for name, data in files.items():
        usable = hashlib.sha256(repr(data.samples.usable()).encode()).hexdigest()
        found |= {f"{name} ({data.path})": data.sha256, f"which samples of {name} can be used": usable}
    return found


def _require_same(folder: Path, inputs: dict[str, str]) -> None:
    """Refuse to go on with parts that were made from other inputs under the same names.

    Raises:
        ValueError: something changed since the run's first part was written.
    """
    path = folder / "inputs.json"
    if path.is_file() and any((folder / name).exists() for name in ("directions.safetensors", "parts")):
        earlier = runs.read_json(path)
        changed = [name for name in {**earlier, **inputs} if earlier.get(name) != inputs.get(name)]
        if changed:
            raise ValueError(f"{folder}: {changed[0]} changed since this run began; choose another --out or delete it")
    runs.write_json(path, inputs)


def _check_targets(files: Mapping[str, str]) -> None:
    if not files:
        raise ValueError("no target set; give at least one, such as --targets.vqav2 FILE")
    for name in files:
        if "/" in name or not name:
            raise ValueError(f"target {name!r}: this name cannot be part of a column; choose another, without '/'")


def _open_targets(
    model: VLM,
    files: Mapping[str, str],
    images: str | None,
    max_length: int,
    folder: Path,
    features: str | None,
    loss_on: LossOn,
) -> dict[str, Data]:
    """Read the target sets; samples that cannot be used are reported and left out."""
    opened = {}
    for name, file in files.items():
        try:
            found = open_data(model, file, images, max_length, features, loss_on=loss_on)
        except (ValueError, OSError) as problem:
            raise ValueError(f"target {name}: {problem}") from None
        found.report(folder / f"skipped_{name}.json")
        opened[name] = found
    return opened


def _columns(data: Data, scored: Scored) -> dict[str, Sequence[Any]]:
    """Lay the table out, one row per record of the file; a sample without a score has NaN."""
    rows = {uid: row for row, uid in enumerate(scored.uids.tolist())}
    order = [rows.get(uid, -1) for uid in range(data.total)]
    read = dict(zip(data.samples.uids, zip(data.samples.samples, data.samples.lengths(), strict=True), strict=True))

    def column(values: Tensor) -> list[float]:
        listed = [*values.tolist(), float("nan")]  # row -1
        return [listed[row] for row in order]

    fixed: dict[str, Sequence[Any]] = {
        "uid": range(data.total),
        "source": [read[uid][0].source if uid in read else "" for uid in range(data.total)],
        "tokens": [read[uid][1] if uid in read else 0 for uid in range(data.total)],
    }
    names = [f"{scorer}/{target}" for scorer, target in scored.names]
    return {
        **fixed,
        "loss": column(scored.losses),
        **{name: column(one) for name, one in zip(names, scored.scores, strict=True)},
    }
