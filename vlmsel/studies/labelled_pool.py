"""A run of `vlmsel detect` as a scored pool: its first seed's samples as files, the classifier before its training, and
the scores of single validation samples, so that what retrains models retrains classifiers too.

A labelled text is a conversation of one round, the text and the name of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel import runs
from vlmsel.data.labelled import Source
from vlmsel.data.sample import Sample
from vlmsel.models.classifier import EncoderLora
from vlmsel.models.classifier_files import open_classifier
from vlmsel.studies.detection import TARGET
from vlmsel.studies.labelled_data import Amounts, draw, fit_together
from vlmsel.training.fine_tuning import FineTuning
from vlmsel.training.phases import PhaseSettings


@dataclass(frozen=True)
class LabelledPool:
    """Where the files lie, and how the classifier was fine-tuned."""

    folder: Path
    settings: PhaseSettings

    @property
    def pool(self) -> str:
        """The training samples."""
        return str(self.folder / "pool.json")

    @property
    def targets(self) -> dict[str, str]:
        """The validation samples."""
        return {TARGET: str(self.folder / f"{TARGET}.json")}

    @property
    def model(self) -> str:
        """The classifier with a fresh head and fresh adapters."""
        return str(self.folder / "fresh")

    @property
    def score(self) -> Path:
        """The scores of the pool."""
        return self.folder / "score"


def labelled_pool(run: Path, detected: Mapping[str, Any], out: Path, call: Callable[..., None]) -> LabelledPool:
    """Write the files of a run of detect, of which these are the settings, and score them at its model.

    Raises:
        ValueError: samples have two texts each.
    """
    columns = tuple(detected["text_columns"]) if detected["text_columns"] else None
    files = {
        name: detected[name] for name in ("task", "data", "train", "validation", "label_column", "true_label_column")
    }
    source = Source(text_columns=columns, **files)
    amounts = (detected[name] for name in ("flip", "train_samples", "validation_samples"))
    data = fit_together(*source.read(), source.title)
    drawn = draw(data, Amounts.of(source, *amounts), seed=0)
    lora = EncoderLora(**{**detected["lora"], "targets": tuple(detected["lora"]["targets"])})
    found = LabelledPool(out, FineTuning(**detected["training"]).phase(detected["tune"]))
    for path, samples in ((found.pool, drawn.train), (found.targets[TARGET], drawn.validation)):
        runs.write_json(path, [_record(sample) for sample in samples])
    if not (Path(found.model) / "classifier.json").is_file():
        classifier = open_classifier(detected["model"], data.classes, 0, detected["fresh_head"])
        classifier.adapt(detected["tune"], lora, 0)
        classifier.save(found.model)
    names = ("scorers", "blocks", "aggregate", "batch_tokens", "scale_samples", "check", "device")
    how = {name: detected[name] for name in names if name in detected}  # runs of earlier versions have sums
    model = str(run / "seed0" / "model")
    call("score", found.score, model=model, pool=found.pool, targets=found.targets, **_tuples(how))
    return found


def _record(sample: Sample) -> dict[str, Any]:
    texts: Sequence[str] = sample.said("human")
    if len(texts) != 1:
        raise ValueError(f"sample {sample.uid} has {len(texts)} texts; only classifiers of single texts are retrained")
    turns = [{"from": "human", "value": texts[0]}, {"from": "gpt", "value": sample.turns[-1].text}]
    return {"source": "text", "conversations": turns}


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
