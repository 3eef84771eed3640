"""Is the choice better than a random one here, and how much is a score worth? Measured before the long run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

from vlmsel import processes, runs
from vlmsel.checks import check_at_least_one
from vlmsel.commands.call import call
from vlmsel.data.formats import read_records
from vlmsel.reporting.validation import show_duel, show_rows
from vlmsel.selection import AffinityRule, Rule, how_many
from vlmsel.studies.bench import Kind, bench_of, check_meaning, read_run
from vlmsel.studies.duel import Duel, Sides
from vlmsel.studies.judging import Judge, begin
from vlmsel.studies.known import Known
from vlmsel.studies.parts import Deciles, Groups, Halves, Parts
from vlmsel.studies.retraining import Bench, Retraining


def validate(
    run: str,
    out: str,
    study: Kind = "duel",
    scorers: tuple[str, ...] | None = None,
    tuned_as: str | None = None,
    fraction: float | None = None,
    count: int | None = None,
    rule: Rule | None = None,
    affinities: AffinityRule = AffinityRule(),
    metric: Literal["exact_match", "choice"] | None = None,
    seeds: int = 3,
    draws: int = 2,
    subsets: int = 32,
    epochs: float | None = None,
    device: str = "auto",
    config: str = "",
) -> None:
    """Retrain on parts of the pool and compare the losses of target samples with what the scores say. Writes
    `out/validate.json`, `out/table.md` and, of several scorers, `out/validate.png`; a stopped run goes on.

    Args:
        run: the run folder of `vlmsel choose`, of `vlmsel score` (several scorers) or of `vlmsel detect`.
        out: the run folder.
        study: duel: a choice by half of every target file against random ones, the other halves judge; deciles: equal
            samples from each tenth of the ranking; lds: random halves of the pool, predicted loss against measured one;
            groups: all of the pool but one fifth of the ranking.
        scorers: names of scorers in the run, and Loss, Length, gradient norm; all of them when left out (of a duel
            those of the run).
        tuned_as: a run folder of `vlmsel warmup`, `tune` or `choose`, whose model and settings are taken; of a run of
            `score`, the warm-up that it scored when left out.
        fraction: part of the pool that a duel or a tenth trains on; small is enough.
        count: how many samples, instead of `fraction`.
        rule: how affinities choose in a duel, as for `vlmsel select`; as the run did when left out.
        affinities: how affinities decide in a duel; as in the run where they are left out.
        metric: what decides a duel instead of the loss: right answers, as for `vlmsel evaluate`, to the target samples
            that judge, asked in their own words.
        seeds: how many times targets are halved and models tuned; intervals need at least 2 (of lds none).
        draws: random choices per seed of a duel, of either kind.
        subsets: random halves of lds.
        epochs: passes over a part; those of the settings when left out.
        device: auto, cpu, cuda or cuda:<number>.
        config: the resolved configuration as text.
    """
    check_at_least_one(seeds=seeds, draws=draws, subsets=subsets)
    if processes.count() > 1:
        raise ValueError("validate runs as one process; start it without torchrun or accelerate launch")
    check_meaning(study, fraction=fraction, count=count, rule=rule, metric=metric)
    found = read_run(Path(run), tuned_as)
    judge, folder = Judge(metric), runs.open_run(out, config)
    runs.same_inputs(folder, {"the scores": runs.file_hash(found.scores)}, more=True)
    score, bench = bench_of(found, folder, epochs, device, call)
    known = Known(score, bench.pool)
    runs.same_inputs(folder, begin(bench, score, judge), more=True)
    size = 0 if study in ("lds", "groups") else how_many(len(read_records(bench.pool)), fraction, count)
    if study == "duel":
        names = known.asked(scorers or found.scorers)
        _duel(run, Sides(bench, score, names, found.choice(rule, affinities), draws, size, judge), folder, seeds)
        return
    names = known.asked(scorers)
    parts: Parts = {
        "deciles": lambda: Deciles(known, names, size),
        "lds": lambda: Halves(known, names, subsets),
        "groups": lambda: Groups(known, names),
    }[study]()
    _retrain(run, parts, bench, folder, seeds, study)


def _duel(run: str, sides: Sides, folder: Path, seeds: int) -> None:
    _say(seeds * len(sides.arms), f"{sides.count} samples' tokens", seeds)
    answers = Duel(sides, call).run(folder, range(seeds), sides.arms)
    found = {scorer: sides.verdicts(scorer, answers) for scorer in sides.scorers}
    show_duel(folder, found, {"run": run, "count": sides.count, "answers": answers})


def _retrain(run: str, parts: Parts, bench: Bench, folder: Path, seeds: int, study: str) -> None:
    plan = cache(parts.plan)
    arms = list(plan(0))
    _say(
        len({(seed, *sorted(own)) for seed in range(seeds) for own in plan(seed).values()}),
        f"{parts.size} samples",
        seeds,
    )
    answers = Retraining(bench, plan, parts.known.found.targets).run(folder, range(seeds), arms)
    about: dict[str, Any] = {"run": run, "study": study, "measure": parts.measure, "count": parts.size, "seeds": seeds}
    show_rows(folder, parts.conclude(answers), about | {"losses": answers})


def _say(trainings: int, size: str, seeds: int) -> None:
    print(f"plan: {trainings} trainings on {size} each, {seeds} seeds", flush=True)
