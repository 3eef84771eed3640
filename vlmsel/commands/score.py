"""Score every sample of a pool by its influence on target tasks: two streamed passes serve all scorers and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vlmsel import runs
from vlmsel.commands.inputs import open_data, open_model, pad_id
from vlmsel.data.batching import Collator, length_batches
from vlmsel.data.dataset import SampleDataset
from vlmsel.data.llava_json import Problem
from vlmsel.gradients import select_blocks
from vlmsel.models.losses import row_samples, sample_losses
from vlmsel.models.vlm import VLM
from vlmsel.scorers import Scorer
from vlmsel.scorers.load import load_scorer
from vlmsel.scoring.directions import Streams
from vlmsel.scoring.passes import Objective
from vlmsel.scoring.run import Scored, score_pool
from vlmsel.scoring.stream import BatchPlan, seeded_part
from vlmsel.scoring.table import write_table

OBJECTIVE = Objective(sample_losses, row_samples)


def score(
    model: str,
    pool: str,
    images: str,
    targets: dict[str, str],
    out: str,
    scorers: tuple[str, ...] = ("HyperINF", "DataInf", "LiSSA", "TracIn"),
    blocks: str = "projector+lora",
    batch_size: int = 32,
    fit_samples: int | None = None,
    scale_samples: int | None = 512,
    target_images: str | None = None,
    max_length: int = 2048,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    workers: int = 0,
    allow_untrained: bool = False,
    config: str = "",
) -> None:
    """Write `out/scores.parquet`: one influence per sample, scorer and target. Lowest = most helpful.

    Args:
        model: the folder of an aligned model, or a preset.
        pool: the samples to score, a JSON file in LLaVA format.
        images: the folder that image paths are relative to.
        targets: one file in LLaVA format per target task, such as `--targets.vqav2 FILE`.
        out: the run folder.
        scorers: names (HyperINF), names with settings (HyperINF(damping=10)) or import paths (my.module:MyScorer).
        blocks: whose gradients count: projector+lora, lora, projector, last-block, or a regular expression on names.
        batch_size: samples per forward and backward pass.
        fit_samples: how many samples, drawn with `seed`, curvature is fitted on; all when left out.
        scale_samples: how many fit samples the damping of DataInf is measured on before the pass; all of them when
        null.
        target_images: the image folder of the targets when it is another one.
        max_length: longest sequence in tokens, patches included; what is longer is cut.
        seed: draws the fit samples.
        dtype: float32 or bfloat16, that of the backbones; gradients are summed up in float32 or better.
        device: auto, cpu, cuda or cuda:<number>.
        workers: processes that read samples.
        allow_untrained: score with a projector that was never trained (selection before alignment).
        config: the resolved configuration as text.
    """
    folder = runs.open_run(out, config)
    loaded = load_scorers(scorers)
    vlm = open_model(model, device, dtype)
    vlm.require_ready(allow_untrained)
    chosen = select_blocks(vlm, blocks)
    found = open_data(vlm, pool, images, max_length)
    goals = _open_targets(vlm, targets, target_images or images, max_length, folder)
    plans = _Plans(vlm, batch_size, workers)
    fit = seeded_part(found.samples.usable(), fit_samples, seed)
    streams = _streams(plans, found.samples, goals, fit, seeded_part(fit, scale_samples, seed + 1))
    scored, bad = score_pool(vlm, plans.of(found.samples), streams, loaded, chosen, OBJECTIVE, folder)
    found.report(folder / "skipped.json", [Problem(uid, reason) for uid, reason in bad.reasons.items()])
    path = folder / "scores.parquet"
    about = {"pool": pool, "pool_sha256": runs.file_hash(pool), "config": config, "environment": runs.environment()}
    write_table(path, _columns(found.samples, scored), {**about, "details": scored.details})
    print(f"{path}: {len(scored.uids)} samples, {len(scored.names)} scores each (influence: lowest = most helpful)")


def load_scorers(names: Sequence[str]) -> list[Scorer]:
    """Load scorers; their names must tell them apart, for they name the table's columns.

    Raises:
        ValueError: none given, one does not load, or two have the same name.
    """
    if not names:
        raise ValueError("no scorer given; name at least one, such as HyperINF")
    loaded = [load_scorer(name) for name in names]
    twice = {scorer.name for scorer in loaded if [s.name for s in loaded].count(scorer.name) > 1}
    if twice:
        raise ValueError(f"two scorers are called {min(twice)!r}; give one another name, such as HyperINF(name='mine')")
    return loaded


class _Plans:
    """Plans batches of data sets for one model."""

    def __init__(self, model: VLM, batch_size: int, workers: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.device, self.batch_size, self.workers = model.device, batch_size, workers
        self.collate = Collator(pad_id(model))

    def of(self, data: SampleDataset, positions: Sequence[int] | None = None) -> BatchPlan:
        """Put samples of like length into one batch; all usable ones when `positions` is left out."""
        positions, lengths = data.usable() if positions is None else positions, data.lengths()
        groups = length_batches([lengths[i] for i in positions], self.batch_size)
        groups = [[positions[i] for i in group] for group in groups]
        return BatchPlan(data, self.collate, groups, self.device, self.workers)


def _streams(
    plans: _Plans, data: SampleDataset, targets: Mapping[str, SampleDataset], fit: list[int], scale: list[int]
) -> Streams:
    """Say what the passes before the score pass read; `fit` and `scale` are positions in the pool."""
    fit_plan, scale_plan = plans.of(data, fit), plans.of(data, scale)
    return Streams(
        fit=partial(fit_plan.shown, "curvature pass"),
        scale=partial(scale_plan.shown, "damping"),
        targets={name: partial(plans.of(one).shown, f"target {name}") for name, one in targets.items()},
        fit_count=len(fit),
    )


def _open_targets(
    model: VLM, files: Mapping[str, str], images: str, max_length: int, folder: Path
) -> dict[str, SampleDataset]:
    """Read the target sets; samples that cannot be used are reported and left out."""
    if not files:
        raise ValueError("no target set; give at least one, such as --targets.vqav2 FILE")
    opened = {}
    for name, file in files.items():
        if "/" in name:
            raise ValueError(f"target {name!r}: a name with '/' cannot be part of a column; choose another")
        try:
            found = open_data(model, file, images, max_length)
        except (ValueError, OSError) as problem:
            raise ValueError(f"target {name}: {problem}") from None
        found.report(folder / f"skipped_{name}.json")
        opened[name] = found.samples
    return opened


def _columns(data: SampleDataset, scored: Scored) -> dict[str, Sequence[Any]]:
    """Lay the table out in the order of the file; a sample without a score has NaN."""
    rows = {uid: row for row, uid in enumerate(scored.uids.tolist())}
    order = [rows.get(uid, -1) for uid in data.uids]

    def column(values: Tensor) -> list[float]:
        listed = [*values.tolist(), float("nan")]  # row -1
        return [listed[row] for row in order]

    fixed: dict[str, Sequence[Any]] = {
        "uid": data.uids,
        "source": [sample.source for sample in data.samples],
        "tokens": data.lengths(),
    }
    names = [f"{scorer}/{target}" for scorer, target in scored.names]
    return {
        **fixed,
        "loss": column(scored.losses),
        **{name: column(one) for name, one in zip(names, scored.scores, strict=True)},
    }
