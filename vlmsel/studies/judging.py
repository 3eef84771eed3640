"""How a duel's models are judged on the target samples that did not choose: by their loss and, where a metric is named,
by how many they answer right, asked in the samples' own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmsel import runs
from vlmsel.checks import check_choice
from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.engines.base import within
from vlmsel.evaluation.engines.open import engine_of
from vlmsel.evaluation.harness import answer_all
from vlmsel.evaluation.visual.letter_tasks import METRICS
from vlmsel.evaluation.visual.own import in_own_words
from vlmsel.evaluation.visual.tasks import VisualTask
from vlmsel.models.pool import open_pool
from vlmsel.models.subject import Subject
from vlmsel.studies.retraining import Bench
from vlmsel.studies.verdict import LOSS, ByFile
from vlmsel.training.warmup import mean_loss

ASKING = Asking("bare")


@dataclass(frozen=True)
class Judge:
    """What models are measured by; `metric` is one of `METRICS`, None for the loss alone.

    Raises:
        ValueError: there is no such metric.
    """

    metric: str | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            check_choice(tuple(METRICS), metric=self.metric)

    @property
    def measures(self) -> list[str]:
        """What is measured; the first one decides."""
        return [LOSS] if self.metric is None else [self.metric, LOSS]

    def try_out(self, bench: Bench, model: Subject) -> None:
        """Ask the model that will be tuned one question of every target file, before the first training.

        Raises:
            ValueError: a sample is no question for the metric, or the model cannot answer it.
        """
        if self.metric is None:
            return
        tasks = {name: self._task(file) for name, file in bench.targets.items()}
        for name, task in tasks.items():
            with within(f"target {name}"):
                responder = task.responder(engine_of(model, bench.template, bench.model), ASKING, _images(bench))
                responder.respond(responder.prepare(task.ids[:1]))

    def __call__(self, model: Subject, bench: Bench, files: Mapping[str, Path], folder: Path) -> dict[str, ByFile]:
        """Measure a model on files of target samples by name, with its answers in a folder; a share is in [0, 1]."""
        read = {name: open_pool(model, file, bench.target_reading).samples for name, file in files.items()}
        found = {LOSS: {name: mean_loss(model, samples) for name, samples in read.items()}}
        if self.metric is not None:
            found[self.metric] = {
                name: self._share(model, bench, file, folder / f"{name}.jsonl") for name, file in files.items()
            }
        return found

    def _task(self, file: str | Path) -> VisualTask:
        return METRICS[self.metric or ""](in_own_words(file, self.metric or ""))

    def _share(self, model: Subject, bench: Bench, file: Path, path: Path) -> float:
        """Return the headline of a file's questions; a model that says nothing has none right."""
        task, engine = self._task(file), engine_of(model, bench.template, bench.model)
        model.module.eval()
        responder = task.responder(engine, ASKING, _images(bench))
        answers = answer_all(task.asked(ASKING), responder, path, task.answer, ASKING.batch_size, task.order())
        return float(task.score(answers)[task.headline])


def begin(bench: Bench, score: Path, judge: Judge = Judge()) -> dict[str, str]:
    """Try the model out before the first training; return digests of all that trainings depend on.

    Raises:
        ValueError: the model cannot be judged so, or a file is another than it was when the pool was scored.
    """
    model = bench.open()
    judge.try_out(bench, model)
    found, scored = bench.inputs(model), runs.read_json(score / "inputs.json")
    for name, digest in found.items():
        if scored.get(name, digest) != digest:
            raise ValueError(f"{name} changed since {score} was made of it; score again, or put the old file back")
    return found


def _images(bench: Bench) -> Path:
    return Path(bench.target_reading.images or "")
