"""Score every sample of a pool by its influence on target tasks: two streamed passes serve all scorers and targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlmsel import runs
from vlmsel.commands.inputs import open_data, open_model, pad_id, report_problems
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
    if not targets:
        raise ValueError("no target set; give at least one, such as --targets.vqav2 FILE")
    vlm = open_model(model, device, dtype)
    vlm.require_ready(allow_untrained)
    chosen = select_blocks(vlm, blocks)
    data, problems = open_data(vlm, pool, images, max_length)
    plan = _Plans(vlm, batch_size, workers)
    streams = _streams(
        plan, data, targets, target_images or images, max_length, folder, fit_samples, scale_samples, seed
    )
    scored, bad = score_pool(vlm, plan.of(data, data.usable()), streams, loaded, chosen, OBJECTIVE, folder)
    problems = [*problems, *(Problem(uid, reason) for uid, reason in bad.reasons.items())]
    report_problems(pool, problems, len(data) + 0, folder / "skipped.json")
    path = folder / "scores.parquet"
    write_table(path, _columns(data, scored, problems), {**_about(pool, config), "details": scored.details})
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

    def of(self, data: SampleDataset, positions: Sequence[int]) -> BatchPlan:
        """Put samples of like length into one batch."""
        lengths = data.lengths()
        groups = length_batches([lengths[i] for i in positions], self.batch_size)
        groups = [[positions[i] for i in group] for group in groups]
        return BatchPlan(data, self.collate, groups, self.device, self.workers)


def _streams(
    plans: _Plans, data: SampleDataset, targets: dict[str, tuple[SampleDataset, list[int]]], part: _Part
) -> Streams:
    """Say what the passes before the score pass read."""
    fit = seeded_part(data.usable(), part.fit, part.seed)
    fit_plan, scale_plan = plans.of(data, fit), plans.of(data, seeded_part(fit, part.scale, part.seed + 1))
    target_plans = {name: plans.of(one, one.usable()) for name, one in targets.items()}
    return Streams(
        fit=lambda: fit_plan.shown("curvature pass"),
        scale=lambda: scale_plan.shown("damping"),
        targets={name: partial(plan.shown, f"target {name}") for name, plan in target_plans.items()},
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
            raise ValueError(f"target {name!r}: a name with '/' cannot be a column; choose another")
        opened[name], problems = open_data(model, file, images, max_length)
        report_problems(file, problems, opened[name].total, folder / f"skipped_{name}.json")
    return opened


def _columns(data: SampleDataset, scored: Scored) -> dict[str, Sequence[Any]]:
    """Lay the table out in the order of uids; samples without a score have NaN."""
    rows = {uid: row for row, uid in enumerate(scored.uids.tolist())}
    uids = sorted({*rows, *data.uids})
