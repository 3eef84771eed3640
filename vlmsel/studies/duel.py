"""The duel: is what affinities choose better than a random choice, and than a random one with the same mixture?

Per seed every target file is cut into halves. One half chooses m samples of the pool; the model is tuned on them, on
random choices of as many tokens, and on random choices of as many tokens with the choice's own share of every source;
the other half judges, by its mean loss. What the choice gains over a random one of its own mixture, it gains within
sources; what only the mixture gains, a quota gives for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmsel import runs
from vlmsel.data.dataset import Reading
from vlmsel.data.formats import read_records, write_part
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.scoring import affinity
from vlmsel.scoring.table import KNOWN, read_table, write_table
from vlmsel.studies.study import Seed, Study, draws_of, kind_of
from vlmsel.studies.verdict import CHOSEN, MIXTURE, RANDOM, Losses
from vlmsel.training.warmup import mean_loss


@dataclass(frozen=True)
class Sides:
    """What the duel is about.

    Attributes:
        model: what is tuned.
        pool: the samples.
        score: the run folder of their score, with affinities.
        scorer: whose affinities choose.
        rule: how, as for `vlmsel select`; top takes the influence on the mean of the choosing half.
        targets: the target files by name.
        reading, target_reading: how the pool and the targets are read.
        draws: random choices per seed, of either kind.
        count: how many samples are chosen.
        tune: further options of `vlmsel tune`.
        device: where losses are taken.
    """

    model: str
    pool: str
    score: Path
    scorer: str
    rule: str
    targets: Mapping[str, str]
    target_reading: Reading
    draws: int
    count: int
    tune: Mapping[str, Any]
    device: str

    @property
    def arms(self) -> list[str]:
        """All choices of a seed."""
        return [CHOSEN, *(draw for kind in (RANDOM, MIXTURE) for draw in draws_of(kind, self.draws))]


@dataclass(frozen=True)
class Duel(Study[Path, Path, Losses]):
    """One half of every target file chooses, the other judges; `call` runs a command into a folder."""

    sides: Sides
    call: Callable[..., None]

    def prepare(self, seed: Seed) -> None:
        """Cut the target files, and what the run knows of them, into halves."""
        sides = self.sides
        found = affinity.Affinities(sides.score / affinity.NAME, sides.pool)
        rows = _choosing(found.targets, seed.number)
        found.write_part(seed.folder / "score" / affinity.NAME, rows)
        _write_half(seed.folder / "score/scores.parquet", sides, found, rows)
        kept = {(found.targets[row]["file"], found.targets[row]["uid"]) for row in rows}
        usable = {(one["file"], one["uid"]) for one in found.targets}
        for name, file in sides.targets.items():
            judging = [uid for uid in range(len(read_records(file))) if (name, uid) in usable - kept]
            write_part(_half(seed, name, file), file, judging)

    def kept(self, seed: Seed, arm: str) -> Losses | None:
        path = _answer(seed, arm)
        return runs.read_json(path) if path.is_file() else None

    def subset(self, seed: Seed, arm: str) -> Path:
        sides, kind = self.sides, kind_of(arm)
        out = seed.folder / "selected" / f"{arm}{Path(sides.pool).suffix}"
        options: dict[str, Any] = {"pool": sides.pool, "scores": str(seed.folder / "score")}
        if arm == CHOSEN:
            options |= {"scorer": sides.scorer, "rule": sides.rule, "count": sides.count}
        else:
            chosen = seed.folder / "selected" / f"{CHOSEN}{Path(sides.pool).suffix}"
            options |= {"scorer": "Random", "seed": 1000 * seed.number + int(arm.split()[-1])}
            options |= {"tokens": choice_tokens(sides.score, chosen)}
            if kind == MIXTURE:
                options["like"] = str(chosen)
        self.call("select", out, **options)
        return out

    def tune(self, seed: Seed, arm: str, data: Path) -> Path:
        out = seed.folder / "tune" / arm
        settings = {**self.sides.tune, "settings": self.sides.tune["settings"](seed.number)}
        self.call("tune", out, model=self.sides.model, data=str(data), **settings)
        return out

    def ask(self, seed: Seed, arm: str, model: Path) -> Losses:
        sides = self.sides
        subject = open_subject(str(model), sides.device)
        halves = {name: _half(seed, name, file) for name, file in sides.targets.items()}
        read = {name: open_pool(subject, half, sides.target_reading).samples for name, half in halves.items()}
        losses = {name: mean_loss(subject, samples) for name, samples in read.items()}
        runs.write_json(_answer(seed, arm), losses)
        return losses


def _choosing(targets: Sequence[Mapping[str, Any]], seed: int) -> list[int]:
    """Draw the rows of half of every target file, at least one; in rising order."""
    rng, chosen = np.random.default_rng(seed), []
    for file in dict.fromkeys(target["file"] for target in targets):
        rows = [row for row, target in enumerate(targets) if target["file"] == file]
        if len(rows) < 2:
            raise ValueError(f"target {file}: one sample cannot be cut into halves; give more")
        chosen += rng.permutation(rows)[: len(rows) // 2].tolist()
    return sorted(chosen)


def _write_half(path: Path, sides: Sides, found: affinity.Affinities, rows: Sequence[int]) -> None:
    """Write the score table with influences on the means of the choosing halves, which are these rows of targets."""
    table, about = read_table(sides.score / "scores.parquet")
    columns: dict[str, Any] = {name: table[name] for name in KNOWN if name in table}
    for file in sides.targets:
        own = [row for row in rows if found.targets[row]["file"] == file]
        influence = np.full(len(table["uid"]), np.nan)
        influence[found.uids] = found.mean_influence(sides.scorer, own)
        columns[f"{sides.scorer}/{file}"] = influence
    write_table(path, columns, about)


def choice_tokens(score: Path, chosen: Path) -> int:
    """Return the tokens of a choice, as the score table counts them."""
    table, _ = read_table(score / "scores.parquet")
    uids = runs.read_json(f"{chosen}.manifest.json")["uids"]
    return int(table["supervised" if "supervised" in table else "tokens"][uids].sum())


def _half(seed: Seed, name: str, file: str) -> Path:
    return seed.folder / "targets" / f"{name}{Path(file).suffix}"


def _answer(seed: Seed, arm: str) -> Path:
    return seed.folder / "losses" / f"{arm}.json"
