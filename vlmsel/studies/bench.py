"""From a run folder to what `vlmsel validate` retrains: its scores, and how its model was tuned."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from vlmsel.data.dataset import Reading
from vlmsel.models.config import LoraSpec
from vlmsel.scorers.load import load_scorers
from vlmsel.selection import AffinityRule
from vlmsel.studies.labelled_pool import labelled_pool
from vlmsel.studies.retraining import Bench
from vlmsel.training.phases import PhaseSettings

Kind = Literal["duel", "deciles", "lds", "groups"]  # of study
WHOLE = ("fraction", "count", "rule", "metric")
MEANINGLESS: dict[str, tuple[str, ...]] = {"duel": (), "deciles": ("rule", "metric"), "lds": WHOLE, "groups": WHOLE}
TUNED = ("warmup", "tune", "choose")


def check_meaning(study: Kind, **options: object) -> None:
    """Refuse options that are given and have no meaning for a study.

    Raises:
        ValueError: names the first.
    """
    for name in MEANINGLESS[study]:
        if options[name] is not None:
            raise ValueError(f"--{name}: no meaning for --study {study}; leave it out")


@dataclass(frozen=True)
class Run:
    """A run that is judged: its folder, its command, its settings, and those of what was tuned."""

    folder: Path
    command: str
    settings: dict[str, Any]
    tuned: dict[str, Any]

    @property
    def scores(self) -> Path:
        """Its score table."""
        return self.folder / {"choose": "score", "score": ".", "detect": "seed0"}[self.command] / "scores.parquet"

    def choice(self, rule: str | None, affinities: AffinityRule) -> dict[str, Any]:
        """Return the options of `vlmsel select` by which a duel chooses: the run's own, but for those that are given.

        Raises:
            ValueError: options of affinities are given with the rule top.
        """
        names = [one.name for one in fields(AffinityRule)]
        own = {name: self.settings[name] for name in ("rule", "quota", *names) if name in self.settings}
        given = {
            one.name: value for one in fields(AffinityRule) if (value := getattr(affinities, one.name)) != one.default
        }
        how = {"rule": "round_robin", **own, **given, **({} if rule is None else {"rule": rule})}
        if how["rule"] != "top":
            return how
        if given:
            raise ValueError(f"--{next(iter(given))}: no meaning for --rule top; leave it out")
        return {name: value for name, value in how.items() if name not in names}

    @property
    def scorers(self) -> list[str]:
        """The names of its scorers."""
        given = (self.settings["scorer"],) if self.command == "choose" else tuple(self.settings["scorers"])
        return [scorer.name for scorer in load_scorers(given)]


def read_run(folder: Path, tuned_as: str | None = None) -> Run:
    """Read a run of choose, score or detect, and say what tuned its model.

    Raises:
        FileNotFoundError: a file of it is missing.
        ValueError: it is of another command, or nobody says how to tune.
    """
    command, settings = _command(folder)
    if command not in ("choose", "score", "detect"):
        raise ValueError(f"{folder}: a run of {command}; give the run folder of `vlmsel choose`, `score` or `detect`")
    if command == "detect" and not (settings.get("validation") or settings.get("data")):
        raise ValueError(f"{folder}: has no clean samples to score for; run `vlmsel detect` with --validation first")
    missing = folder / {"choose": "score/affinity.safetensors", "score": "affinity.safetensors"}.get(
        command, "seed0/model/classifier.json"
    )
    if command == "score" and not missing.is_file() and (folder / "scores.parquet").is_file():
        raise FileNotFoundError(f"{missing}: no such file; score with --each_target true, whose targets can be halved")
    if not missing.is_file():
        raise FileNotFoundError(f"{missing}: no such file; give the run folder of a `vlmsel {command}` that is done")
    if command == "detect" and tuned_as is not None:
        raise ValueError("--tuned_as: no meaning for a run of `vlmsel detect`, which tuned; leave it out")
    if command == "score":
        tuned = _tuned(folder, settings["model"], tuned_as)
    else:
        tuned = settings if tuned_as is None else _tuned(folder, "", tuned_as)
    return Run(folder, command, settings, tuned)


def _tuned(folder: Path, model: str, tuned_as: str | None) -> dict[str, Any]:
    """Return the settings of the run that tuned."""
    for place in [Path(tuned_as)] if tuned_as else [Path(model), Path(model).parent]:
        if (place / "config.yaml").is_file() and (found := _command(place))[0] in TUNED:
            return found[1]
    if tuned_as:
        raise ValueError(f"--tuned_as {tuned_as}: no run folder of `vlmsel warmup`, `tune` or `choose`")
    raise ValueError(f"{folder}: scored {model}, which does not say how to tune; name a run that does: --tuned_as RUN")


def _command(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / "config.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if (command := re.match(r"# vlmsel (\w+)\n", text)) is None:
        raise FileNotFoundError(f"{path}: no such file; give the run folder of a `vlmsel choose` that is done")
    return command[1], yaml.safe_load(text)


def bench_of(run: Run, out: Path, epochs: float | None, device: str, call: Callable[..., None]) -> tuple[Path, Bench]:
    """Return the folder of a run's scores and what is retrained; of a classifier, files are written to `out` first."""
    own, tuned = run.settings, run.tuned
    if run.command == "detect":
        made = labelled_pool(run.folder, own, out / "labelled", call)
        reading = Reading() if own["max_length"] is None else Reading(max_length=own["max_length"])
        score, model, pool, targets = made.score, made.model, made.pool, made.targets
        bench = Bench(model, pool, targets, reading, reading, made.settings, None, None, None, device)
    else:
        images = own.get("images")
        more = {name: own[name] for name in ("max_length", "loss_on", "allow_missing") if name in own}
        reading = Reading(None if images is None else Path(images), **more)
        beside = own.get("target_images")
        goal = reading if beside is None else replace(reading, images=Path(beside))
        lora = None if tuned.get("lora") is None else LoraSpec(**tuned["lora"])
        dtype = tuned.get("dtype", "float32")
        how = PhaseSettings(**tuned["settings"]), lora, own.get("template"), own.get("exif"), device, dtype
        score = run.folder / "score" if run.command == "choose" else run.folder
        bench = Bench(tuned["model"], own["pool"], own["targets"], reading, goal, *how)
    return score, bench if epochs is None else replace(bench, settings=replace(bench.settings, epochs=epochs))
