"""Retraining on parts of a pool: part -> tuned model -> the loss of every target sample.

A model is a means here: once its losses are written it is removed, so that hundreds of trainings take the disk of one.
Parts with the same samples are trained once per seed, whichever arms they belong to.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmsel import runs
from vlmsel.data.dataset import Reading
from vlmsel.data.formats import pool_digest, write_part
from vlmsel.models.config import LoraSpec
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.models.subject import Subject
from vlmsel.studies.study import Seed, Study
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.run import train_on
from vlmsel.training.warmup import sample_losses

Plan = Mapping[str, Sequence[int]]  # uids that are trained on, by arm


@dataclass(frozen=True)
class Bench:
    """What is tuned, on what, and what judges it.

    Attributes:
        model: what is tuned.
        pool: the samples.
        targets: the target files by name.
        reading, target_reading: how the pool and the targets are read.
        settings: how it is tuned; `settings.seed` is each seed's.
        lora: fresh adapters.
        template, exif: of the model, as for `vlmsel tune`.
        device: where it runs.
        dtype: of what is frozen, as for `vlmsel tune`.
    """

    model: str
    pool: str
    targets: Mapping[str, str]
    reading: Reading
    target_reading: Reading
    settings: PhaseSettings
    lora: LoraSpec | None
    template: str | None
    exif: bool | None
    device: str
    dtype: str = "float32"

    def open(self) -> Subject:
        """Open the model as it is before it is tuned."""
        subject = open_subject(self.model, self.device, self.dtype, self.template)
        subject.turn_pictures(self.exif)
        return subject

    def inputs(self, subject: Subject) -> dict[str, str]:
        """Return digests of what trainings depend on; `subject` is the model, open."""
        targets = {f"target {name} ({Path(file)})": pool_digest(file) for name, file in self.targets.items()}
        return {
            f"the model to tune ({self.model})": subject.digest(),
            f"the pool ({Path(self.pool)})": pool_digest(self.pool),
            **targets,
        }

    def train(self, data: Path, seed: int, out: Path) -> Subject:
        """Tune the model on a file of samples."""
        subject, settings = self.open(), self.settings
        if self.lora is not None:
            subject.attach_lora(self.lora, seed, self.model)
        train_on(subject, data, self.reading, replace(settings, seed=seed), out)
        return subject

    def losses(self, subject: Subject, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Return the losses of the target samples that `rows` name by file and uid."""
        found: dict[tuple[str, int], float] = {}
        for name, file in self.targets.items():
            samples = open_pool(subject, file, self.target_reading).samples
            found |= {(name, uid): loss for uid, loss in sample_losses(subject, samples).items()}
        return [found[row["file"], row["uid"]] for row in rows]


@dataclass(frozen=True)
class Retraining(Study[Path, Subject, list[float]]):
    """Train on every arm of a seed's plan; an answer is the loss of each target sample, in the order of `rows`."""

    bench: Bench
    plan: Callable[[int], Plan]
    rows: Sequence[Mapping[str, Any]]

    def kept(self, seed: Seed, arm: str) -> list[float] | None:
        path = self._answer(seed, arm)
        return runs.read_json(path) if path.is_file() else None

    def subset(self, seed: Seed, arm: str) -> Path:
        path = self._work(seed, arm).with_suffix(Path(self.bench.pool).suffix)
        write_part(path, self.bench.pool, sorted(self.plan(seed.number)[arm]))
        return path

    def tune(self, seed: Seed, arm: str, data: Path) -> Subject:
        arms = list(self.plan(seed.number))
        print(f"\n== seed {seed.number}, training {arms.index(arm) + 1} of {len(arms)}: {arm}", flush=True)
        return self.bench.train(data, seed.number, self._work(seed, arm))

    def ask(self, seed: Seed, arm: str, model: Subject) -> list[float]:
        losses = self.bench.losses(model, self.rows)
        runs.write_json(self._answer(seed, arm), losses)
        shutil.rmtree(seed.folder / "work")
        return losses

    def _name(self, seed: Seed, arm: str) -> str:
        return hashlib.sha256(repr(sorted(map(int, self.plan(seed.number)[arm]))).encode()).hexdigest()[:16]

    def _answer(self, seed: Seed, arm: str) -> Path:
        return seed.folder / "losses" / f"{self._name(seed, arm)}.json"

    def _work(self, seed: Seed, arm: str) -> Path:
        return seed.folder / "work" / self._name(seed, arm)
