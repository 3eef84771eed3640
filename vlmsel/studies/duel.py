"""The duel: is what affinities choose better than a random choice, and than a random one with the same mixture?

Per seed every target file is cut into halves. One half chooses m samples of the pool; the model is tuned on them, on
random choices of as many tokens, and on random choices of as many tokens with the choice's own share of every source;
the other half judges, by its mean loss and by a metric where one is named. What the choice gains over a random one of
its own mixture, it gains within sources; what only the mixture gains, a quota gives for nothing.

Of a pool with one source every random choice has the choice's mixture, and none is drawn for it.

Several scorers share the random choices, and all choose as many tokens; arms are then `<scorer>, chosen` and
`<scorer>, same mixture 1`. A scorer without affinities to single target samples chooses by the rule top.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlmsel import runs
from vlmsel.data.formats import read_records, write_part
from vlmsel.models.subject import Subject
from vlmsel.scoring.affinity import NAME
from vlmsel.scoring.table import KNOWN, read_table, write_table
from vlmsel.studies.judging import Judge
from vlmsel.studies.known import Known, choosing_half
from vlmsel.studies.retraining import Bench
from vlmsel.studies.study import Seed, Study, draws_of, kind_of
from vlmsel.studies.verdict import CHOSEN, MIXTURE, RANDOM, ByFile, verdict

Answer = dict[str, ByFile]  # by measure


@dataclass(frozen=True)
class Sides:
    """What the duel is about.

    Attributes:
        bench: what is tuned, on what, and what judges it.
        score: the run folder of the pool's score, with affinities.
        scorers: whose affinities choose.
        how: options of `vlmsel select`, its rule among them; top takes the influence on the mean of the choosing half.
        draws: random choices per seed, of either kind.
        count: how many samples are chosen.
        judge: by what.
    """

    bench: Bench
    score: Path
    scorers: Sequence[str]
    how: Mapping[str, Any]
    draws: int
    count: int
    judge: Judge = Judge()

    @property
    def arms(self) -> list[str]:
        """All choices of a seed."""
        own = [self.arm(scorer, kind) for scorer in self.scorers for kind in (CHOSEN, *self.mixtures)]
        return [*draws_of(RANDOM, self.draws), *own] if len(self.scorers) > 1 else self.alone(self.scorers[0])

    @cached_property
    def mixtures(self) -> list[str]:
        """Draws of a choice's own mixture; none where the pool has one source."""
        return draws_of(MIXTURE, self.draws) if Known(self.score, self.bench.pool).mixed else []

    def arm(self, scorer: str, kind: str) -> str:
        """Name a scorer's choice, or a draw of its mixture."""
        return f"{scorer}, {kind}" if len(self.scorers) > 1 else kind

    def alone(self, scorer: str) -> list[str]:
        """Name the choices that a scorer is judged by."""
        mixtures = [self.arm(scorer, one) for one in self.mixtures]
        return [self.arm(scorer, CHOSEN), *draws_of(RANDOM, self.draws), *mixtures]

    def verdicts(self, scorer: str, answers: Sequence[Mapping[str, Answer]]) -> dict[str, dict[str, Any]]:
        """Return the verdict on a scorer, as if it were alone, by measure; the first one decides."""
        return {
            measure: verdict(
                [{arm.rpartition(", ")[2]: one[arm][measure] for arm in self.alone(scorer)} for one in answers], measure
            )
            for measure in self.judge.measures
        }


@dataclass(frozen=True)
class Duel(Study[Path, Subject, Answer]):
    """One half of every target file chooses, the other judges; `call` runs a command into a folder."""

    sides: Sides
    call: Callable[..., None]

    def prepare(self, seed: Seed) -> None:
        """Cut the target files, and what the run knows of them, into halves."""
        sides = self.sides
        known = Known(sides.score, sides.bench.pool)
        found = known.found
        rows = choosing_half(found.targets, seed.number)
        found.write_part(seed.folder / "score" / NAME, rows)
        _write_half(seed.folder / "score/scores.parquet", sides.scorers, known, rows)
        kept = {(found.targets[row]["file"], found.targets[row]["uid"]) for row in rows}
        usable = {(one["file"], one["uid"]) for one in found.targets}
        for name, file in sides.bench.targets.items():
            judging = [uid for uid in range(len(read_records(file))) if (name, uid) in usable - kept]
            write_part(_half(seed, name, file), file, judging)

    def kept(self, seed: Seed, arm: str) -> Answer | None:
        path = _answer(seed, arm)
        return runs.read_json(path) if path.is_file() else None

    def subset(self, seed: Seed, arm: str) -> Path:
        sides, several = self.sides, len(self.sides.scorers) > 1
        scorer, _, draw = arm.rpartition(", ")
        scorer, known = scorer or sides.scorers[0], Known(sides.score, sides.bench.pool)
        out = seed.folder / "selected" / f"{arm}{Path(sides.bench.pool).suffix}"
        chosen = out.with_name(f"{sides.arm(scorer, CHOSEN)}{out.suffix}")
        options: dict[str, Any] = {"pool": sides.bench.pool, "scores": str(seed.folder / "score")}
        if draw == CHOSEN:
            alone = {"rule": "top", "quota": sides.how.get("quota")}  # of who does not know target samples one by one
            options |= {"scorer": scorer, **(sides.how if known.single(scorer) else alone)}
            options |= {"tokens": budget(known, sides.count)} if several else {"count": sides.count}
        else:
            options |= {"scorer": "Random", "seed": 1000 * seed.number + int(draw.split()[-1])}
            options["tokens"] = budget(known, sides.count) if several else choice_tokens(sides.score, chosen)
            if kind_of(draw) == MIXTURE:
                options["like"] = str(chosen)
        self.call("select", out, **options)
        return out

    def tune(self, seed: Seed, arm: str, data: Path) -> Subject:
        return self.sides.bench.train(data, seed.number, seed.folder / "work" / arm)

    def ask(self, seed: Seed, arm: str, model: Subject) -> Answer:
        bench = self.sides.bench
        halves = {name: _half(seed, name, file) for name, file in bench.targets.items()}
        found = self.sides.judge(model, bench, halves, seed.folder / "predictions" / arm)
        runs.write_json(_answer(seed, arm), found)
        shutil.rmtree(seed.folder / "work")
        return found


def _write_half(path: Path, scorers: Sequence[str], known: Known, rows: Sequence[int]) -> None:
    """Write the score table with influences on the means of the choosing halves, which are these rows of targets."""
    columns: dict[str, Any] = {name: known.table[name] for name in KNOWN if name in known.table}
    for scorer in scorers:
        for file, affinity in zip(known.files, known.by_file(scorer, rows), strict=True):
            influence = np.full(len(known.table["uid"]), np.nan)
            influence[known.uids] = -affinity
            columns[f"{scorer}/{file}"] = influence
    write_table(path, columns, known.about)


def budget(known: Known, count: int) -> int:
    """Return the tokens that so many samples of the pool have on average."""
    tokens = known.table["supervised" if "supervised" in known.table else "tokens"][known.uids]
    return max(1, round(count * float(np.mean(tokens))))


def choice_tokens(score: Path, chosen: Path) -> int:
    """Return the tokens of a choice, as the score table counts them."""
    table, _ = read_table(score / "scores.parquet")
    uids = runs.read_json(f"{chosen}.manifest.json")["uids"]
    return int(table["supervised" if "supervised" in table else "tokens"][uids].sum())


def _half(seed: Seed, name: str, file: str) -> Path:
    return seed.folder / "targets" / f"{name}{Path(file).suffix}"


def _answer(seed: Seed, arm: str) -> Path:
    return seed.folder / "answers" / f"{arm}.json"
