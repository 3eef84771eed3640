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
from vlmsel.scoring.table import read_table
from vlmsel.studies.intervals import interval
from vlmsel.studies.study import Seed, Study
from vlmsel.training.warmup import mean_loss

CHOSEN, RANDOM, MIXTURE = "chosen", "random", "same mixture"
Losses = dict[str, float]  # mean loss on the judging half, by target file


@dataclass(frozen=True)
class Sides:
    """What the duel is about.

    Attributes:
        model: what is tuned.
        pool: the samples.
        score: the run folder of their score, with affinities.
        scorer: whose affinities choose.
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
    targets: Mapping[str, str]
    target_reading: Reading
    draws: int
    count: int
    tune: Mapping[str, Any]
    device: str

    @property
    def arms(self) -> list[str]:
        """All choices of a seed."""
        return [CHOSEN, *(f"{kind} {draw}" for kind in (RANDOM, MIXTURE) for draw in range(1, self.draws + 1))]


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
        table = seed.folder / "score/scores.parquet"
        if not table.exists():
            table.symlink_to((sides.score / "scores.parquet").resolve())
        kept = {(found.targets[row]["file"], found.targets[row]["uid"]) for row in rows}
        usable = {(one["file"], one["uid"]) for one in found.targets}
        for name, file in sides.targets.items():
            judging = [uid for uid in range(len(read_records(file))) if (name, uid) in usable - kept]
            write_part(_half(seed, name, file), file, judging)

    def kept(self, seed: Seed, arm: str) -> Losses | None:
        path = _answer(seed, arm)
        return runs.read_json(path) if path.is_file() else None

    def subset(self, seed: Seed, arm: str) -> Path:
        sides, kind = self.sides, arm.rpartition(" ")[0] or arm
        out = seed.folder / "selected" / f"{arm}{Path(sides.pool).suffix}"
        options: dict[str, Any] = {"pool": sides.pool, "scores": str(seed.folder / "score")}
        if arm == CHOSEN:
            options |= {"scorer": sides.scorer, "count": sides.count}
        else:
            chosen = seed.folder / "selected" / f"{CHOSEN}{Path(sides.pool).suffix}"
            options |= {"scorer": "Random", "seed": 1000 * seed.number + int(arm.split()[-1])}
            options |= {"tokens": _tokens(sides.score, chosen)}
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


def _tokens(score: Path, chosen: Path) -> int:
    """Return the tokens of a choice, as the score table counts them."""
    table, _ = read_table(score / "scores.parquet")
    uids = runs.read_json(f"{chosen}.manifest.json")["uids"]
    return int(table["supervised" if "supervised" in table else "tokens"][uids].sum())


def _half(seed: Seed, name: str, file: str) -> Path:
    return seed.folder / "targets" / f"{name}{Path(file).suffix}"


def _answer(seed: Seed, arm: str) -> Path:
    return seed.folder / "losses" / f"{arm}.json"


# What came of it


def verdict(answers: Sequence[Mapping[str, Losses]]) -> dict[str, Any]:
    """Compare the choice with both kinds of random choices, paired by seed: mean difference of held-out losses over
    the target files, 95 % t-interval over seeds, and what follows.

    >>> def seed(*losses):
    ...     return dict(zip(["chosen", "random 1", "same mixture 1"], [{"a": one} for one in losses]))
    >>> verdict([seed(1.0, 2.0, 1.5), seed(1.1, 2.2, 1.7), seed(0.9, 1.8, 1.5)])["advice"]
    'use it'
    """
    found = {}
    for kind in (RANDOM, MIXTURE):
        gains = [_mean(one, kind) - _mean(one, CHOSEN) for one in answers]
        mean, half = interval(gains)
        word = "better" if mean - half > 0 else "worse" if mean + half < 0 else "not told apart"
        found[kind] = {"gain": mean, "half_width": half, "verdict": word, "per_seed": gains}
    random, mixture = (found[kind]["verdict"] for kind in (RANDOM, MIXTURE))
    if random == "better":
        advice = "use it" if mixture == "better" else "set a quota by its mixture and draw at random"
    else:
        advice = "do not use it here; draw at random"
    return {**found, "verdict": random, "advice": advice}


def said(found: Mapping[str, Any]) -> str:
    """Say a verdict in one sentence, with the advice."""
    words = {"better": "better than", "worse": "worse than", "not told apart": "not told apart from"}
    random, mixture = (words[found[kind]["verdict"]] for kind in (RANDOM, MIXTURE))
    return (
        f"the choice is {random} a random one and {mixture} a random one of its own mixture (held-out loss, 95 %): "
        f"{found['advice']}"
    )


def _mean(losses: Mapping[str, Losses], kind: str) -> float:
    """Return the mean loss over draws and target files of one kind of choice."""
    own = [one for arm, one in losses.items() if arm == kind or arm.rpartition(" ")[0] == kind]
    return sum(sum(one.values()) / len(one) for one in own) / len(own)
