"""What the long commands do, step by step: for `--dry_run`, for the stages of their bars, and for the paths that are
checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

READ = ("checking images", "measuring samples")
PASSES = (*READ, "targets", "target samples", "virtual targets", "curvature pass", "score pass")
MODEL = "model/ (what was trained, with its tokenizer)"


@dataclass(frozen=True)
class Work:
    """What a command does.

    Attributes:
        steps: in words; braces take options.
        writes: what it leaves in `--out`.
        stages: its bars, in their order.
        files: the options that name files of samples.
        model: the options that name models.
        own: whether the command looks at its paths itself, before it opens a model; a dry run does here.
    """

    steps: tuple[str, ...]
    writes: tuple[str, ...]
    stages: tuple[str, ...] = ()
    files: tuple[str, ...] = ("pool", "data", "targets")
    model: tuple[str, ...] = ("model",)
    own: bool = False


SCORED = ("scores.parquet", "scores.json", "affinity.safetensors", "skipped.json")
WORK = {
    "align": Work(
        ("open {model}", "check every caption and picture", "train {settings.train} for {settings.epochs:g} epochs"),
        (MODEL, "phase.json"),
        (*READ, "training"),
    ),
    "warmup": Work(
        (
            "open {model}",
            "draw {fraction:g} of the pool, at least {least} samples, from every source in proportion",
            "mean loss on every target file",
            "train {settings.train} for {settings.epochs:g} epochs",
            "mean loss on every target file again",
        ),
        (MODEL, "warmup.json", "part.* (the samples that were drawn)", "phase.json"),
        (*READ, "target losses", "training"),
    ),
    "score": Work(
        (
            "open {model}",
            "check every sample and picture",
            "three passes over the targets: means, directions, {single.columns} columns at most",
            "a curvature pass over {fit.fit_samples} samples (None: all)",
            "a score pass over the pool, for {scorers} at once",
        ),
        SCORED,
        PASSES,
    ),
    "choose": Work(
        (
            "vlmsel warmup on {warmup:g} of the pool, at least 200 samples, {settings.epochs:g} epochs",
            "vlmsel score with {scorer}, curvature from {fit_samples} samples",
            "vlmsel select: {ask.fraction} of the pool, {ask.count} samples or {ask.tokens} tokens (None: not asked)",
        ),
        ("warmup/", "score/", "chosen.* with its manifest"),
    ),
    "tune": Work(
        ("open {model}", "check every sample and picture", "train {settings.train} for {settings.epochs:g} epochs"),
        (MODEL, "phase.json"),
        (*READ, "training"),
    ),
    "validate": Work(
        (
            "read {run}: scores, and how to tune (study {study}, {seeds} seeds)",
            "duel: choose by half of every target file, beside {draws} random choices of either kind",
            "deciles: ten parts of each scorer's ranking; groups: all but each of five; lds: {subsets} random halves",
            "tune on each; the loss of target samples judges (how many trainings it says as it begins)",
        ),
        ("seed*/", "validate.json", "table.md", "validate.png (several scorers)"),
        files=(),
        model=(),
    ),
    "evaluate": Work(
        ("read the questions", "open each model", "answer in batches of {batch_size}", "compute the metrics"),
        ("predictions.jsonl", "metrics.json", "table.md (several models or tasks)"),
        ("answering",),
        files=("questions", "annotations", "ocr"),
        model=("model", "models"),
        own=True,
    ),
    "detect": Work(
        (
            "read the texts and draw what is used, for {seeds} seeds",
            "fine-tune {model} ({tune}) on the labels as given",
            "score every training sample with {scorers}",
            "rank labels by how likely they are wrong",
        ),
        ("seed*/", "suspects.csv", "results.json", "table.md and detection.png (where wrong labels are known)"),
        ("measuring samples", "training", "targets", "curvature pass", "score pass"),
        files=(),
        model=(),
    ),
}


def check(command: str, values: Mapping[str, Any], dry_run: bool = False) -> None:
    """Look whether what a command reads is there, before anything is loaded.

    Raises:
        FileNotFoundError: a file, an image folder or a model is not.
    """
    work = WORK.get(command)
    if work is None or (work.own and not dry_run):
        return
    from vlmsel.data.images import require_folder
    from vlmsel.models.open import make_of

    given = flat(values)
    for label, path in _paths(given, (*work.files, "against")):
        require_pool(path, label)
    for name in ("images", "target_images"):
        if isinstance(given.get(name), str) and work.files:
            require_folder(Path(given[name]))
    for _, source in _paths(given, work.model):
        make_of(source)


def require_pool(path: str, label: str = "") -> None:
    """Refuse the file of a pool that is not there, unless it could be a data set of the hub.

    Raises:
        FileNotFoundError: names it.
    """
    from vlmsel.data.hub import HUB_NAME

    if not Path(path).exists() and (Path(path).suffix or not HUB_NAME.fullmatch(path)):
        raise FileNotFoundError(f"{label}{path}: no such file")


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command's options by name, those of its groups too."""
    found = dict(values)
    for value in values.values():
        if is_dataclass(value) and getattr(type(value), "flat", False):
            found |= vars(value)
    return found


def _paths(given: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in names:
        value = given.get(name)
        if isinstance(value, dict):
            label = "target {}: " if name == "targets" else ""
            yield from ((label.format(key), path) for key, path in value.items())
        elif isinstance(value, str | list):
            yield from (("", path) for path in ([value] if isinstance(value, str) else value))


def describe(command: str, values: Mapping[str, Any]) -> list[str]:
    """Say what a command would do, read and write; it is checked before.

    Raises:
        ValueError: the run folder holds something else.
    """
    from vlmsel import runs
    from vlmsel.data.formats import read_records

    work, out = WORK[command], Path(values["out"])
    lines = [f"vlmsel {command} would"]
    lines += [f"  {number}. {step.format(**values)}" for number, step in enumerate(work.steps, 1)]
    for label, path in _paths(flat(values), work.files):
        count = "" if work.own else f": {len(read_records(path)):,} records"
        lines.append(f"reads {label}{path}{count}")
    goes_on = runs.could_open(out, values["config"])
    lines.append(f"writes {out}/: {', '.join(work.writes)}{' (goes on with what is there)' if goes_on else ''}")
    return [*lines, "", values["config"].rstrip()]
