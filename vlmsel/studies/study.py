"""A study: per seed and arm, subset -> tune -> ask, and what the answers are over seeds.

An arm is one way to come to a model, such as a scorer whose choice it is tuned on, the full pool, or no tuning at all.
Each step leaves its result in the seed's folder and finds it again there, so that a study which was stopped goes on
when it is run again.

Answers are numbers by row and measure, such as model and task: `gather` puts those of several seeds side by side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, final

from vlmsel import runs
from vlmsel.progress import Pace

Data = TypeVar("Data")
Model = TypeVar("Model")
Answer = TypeVar("Answer")
Value = TypeVar("Value")
Values = Mapping[str, Mapping[str, Sequence[float]]]  # row -> measure -> one value per seed
MAJORITY = "majority answer"
RANDOM, MIXTURE = "Random", "same mixture"  # controls: random samples, and as many of every source as a choice has


class Seed(NamedTuple):
    """One repetition of a study, and the folder that its steps work in."""

    number: int
    folder: Path


def draws_of(kind: str, count: int) -> list[str]:
    """Name the draws of one kind of arm.

    >>> draws_of("Random", 2)
    ['Random 1', 'Random 2']
    """
    return [f"{kind} {draw}" for draw in range(1, count + 1)]


def kind_of(arm: str) -> str:
    """Return the kind of arm that one is a draw of, itself where it is none.

    >>> kind_of("Random 2"), kind_of("not tuned")
    ('Random', 'not tuned')
    """
    kind, _, draw = arm.rpartition(" ")
    return kind if draw.isdigit() else arm


class Study(ABC, Generic[Data, Model, Answer]):
    """What is done for every arm of every seed."""

    def prepare(self, seed: Seed) -> None:
        """Do what all arms of a seed stand on, such as drawing and scoring a pool."""
        return

    def kept(self, seed: Seed, arm: str) -> Answer | None:
        """Return an answer that is there already, for which none of the steps is needed."""
        return None

    @abstractmethod
    def subset(self, seed: Seed, arm: str) -> Data:
        """Return what the arm's model is tuned on."""

    @abstractmethod
    def tune(self, seed: Seed, arm: str, data: Data) -> Model:
        """Return the model tuned on it."""

    @abstractmethod
    def ask(self, seed: Seed, arm: str, model: Model) -> Answer:
        """Return the model's answer."""

    def conclude(self, seed: Seed) -> None:
        """Do what is done once for all arms of a seed, after the last."""
        return

    @final
    def run(self, folder: Path, seeds: Iterable[int], arms: Sequence[str]) -> list[dict[str, Answer]]:
        """Run every arm of every seed in `folder/seed<k>`, or what is left of it; return each seed's answers by arm."""
        answers: list[dict[str, Answer]] = []
        every = [Seed(number, folder / f"seed{number}") for number in seeds]
        pace = Pace(len(every) * len(arms))
        for seed in every:
            self.prepare(seed)
            answers.append({})
            for arm in arms:
                found = self.kept(seed, arm)
                with pace.step(worked=found is None):
                    if found is None:
                        found = self.ask(seed, arm, self.tune(seed, arm, self.subset(seed, arm)))
                answers[-1][arm] = found
            self.conclude(seed)
        return answers


def gather(seeds: Sequence[Mapping[str, Mapping[str, Value]]]) -> dict[str, dict[str, list[Value]]]:
    """Turn each seed's row -> measure -> value into row -> measure -> values of the seeds.

    >>> gather([{"A": {"auc": 0.5}}, {"A": {"auc": 0.7}}])
    {'A': {'auc': [0.5, 0.7]}}
    """
    return {row: {name: [seed[row][name] for seed in seeds] for name in measures} for row, measures in seeds[0].items()}


def read_evaluations(folder: Path, first: Sequence[str] = ()) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Read what the models of a study answered: headline metrics in percent per model and task, and the tasks.

    `seed<k>/evaluate/<model>/<task>/metrics.json` are those of `vlmsel evaluate`; draws of one kind (`draws_of`) are
    averaged. The first row is the best constant answer of each benchmark; the models `first` come next, in order.

    Raises:
        ValueError: there is no evaluation, or a model was not evaluated on every task and seed.
    """
    seeds: dict[str, dict[str, dict[str, float]]] = {}
    for path in sorted(folder.glob("seed*/evaluate/*/*/metrics.json")):
        task, model, seed = path.parts[-2], path.parts[-3], path.parts[-5]
        metrics = runs.read_json(path)
        for name, kind in ((model, "metrics"), (MAJORITY, "majority")):
            row = seeds.setdefault(seed, {}).setdefault(name, {})
            row[task] = 100 * metrics[kind][metrics["headline"]]
    if not seeds:
        raise ValueError(f"{folder}: no seed*/evaluate/<model>/<task>/metrics.json in it; run the study first")
    models = dict.fromkeys(name for found in seeds.values() for name in found)
    tasks = list(dict.fromkeys(task for found in seeds.values() for task in found[MAJORITY]))
    place = {name: number for number, name in enumerate((MAJORITY, *first))}
    order = sorted(
        [MAJORITY, *(name for name in models if name != MAJORITY)],
        key=lambda name: place.get(kind_of(name), len(place)),
    )
    for name in order:
        if lacking := [f"{seed}/{task}" for task in tasks for seed in seeds if task not in seeds[seed].get(name, {})]:
            raise ValueError(f"{folder}: {name} was not evaluated on {lacking[0]}; run the study to its end")
    rows = [_by_kind({name: found[name] for name in order}, tasks) for found in seeds.values()]
    return gather(rows), tasks


def read_errors(folder: Path) -> dict[str, dict[str, float]]:
    """Return the standard errors of one seed's headline metrics, in percent by model and task, where they have one; of
    draws of one kind that of their mean, taken as independent."""
    draws: dict[str, dict[str, list[float]]] = {}
    for path in sorted(folder.glob("seed*/evaluate/*/*/metrics.json")):
        metrics = runs.read_json(path)
        if (error := metrics.get("standard_errors", {}).get(metrics["headline"])) is not None:
            own = draws.setdefault(kind_of(path.parts[-3]), {}).setdefault(path.parts[-2], [])
            own.append(100 * error)
    return {
        model: {task: math.sqrt(sum(error**2 for error in own)) / len(own) for task, own in row.items()}
        for model, row in draws.items()
    }


def _by_kind(found: Mapping[str, Mapping[str, float]], tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Average one seed's draws."""
    kinds: dict[str, list[Mapping[str, float]]] = {}
    for name, row in found.items():
        kinds.setdefault(kind_of(name), []).append(row)
    return {kind: {task: sum(row[task] for row in rows) / len(rows) for task in tasks} for kind, rows in kinds.items()}


def with_mean(values: Values, tasks: Sequence[str]) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Add the measure `mean`, the average over several tasks per seed; return what there is now and its measures.

    >>> with_mean({"A": {"gqa": [1.0], "pope": [2.0]}}, ["gqa", "pope"])
    ({'A': {'gqa': [1.0], 'pope': [2.0], 'mean': [1.5]}}, ['gqa', 'pope', 'mean'])
    """
    full = {model: {task: list(row[task]) for task in tasks} for model, row in values.items()}
    if len(tasks) == 1:
        return full, list(tasks)
    for row in full.values():
        row["mean"] = [sum(one) / len(one) for one in zip(*row.values(), strict=True)]
    return full, [*tasks, "mean"]
