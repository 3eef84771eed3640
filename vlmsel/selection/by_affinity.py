"""The rules on affinities of single target samples: which targets choose, how often, and from which samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from vlmsel.selection.budget import Budget
from vlmsel.selection.herding import herd
from vlmsel.selection.nearest import ROWS, Features, blocks
from vlmsel.selection.round_robin import Taken, round_robin
from vlmsel.selection.strata import strata
from vlmsel.selection.turns import Turns, file_weights, sample_weights, shares, turn_order


class Source(Protocol):
    """Where affinities come from, such as `scoring.affinity.Affinities`."""

    uids: np.ndarray
    targets: list[dict[str, Any]]

    def unit(self, scorer: str, rows: slice) -> np.ndarray: ...
    def directions(self, scorer: str) -> np.ndarray: ...
    def combination(self, scorer: str) -> np.ndarray: ...
    def whitening(self, scorer: str) -> np.ndarray: ...


class Choice(NamedTuple):
    """What was chosen from affinities.

    Attributes:
        taken: rows are uids; takers stand in `targets`.
        targets: {"file", "uid", …} of the target samples that chose.
        weights: of their files, by which these took turns.
        turns_taken: whether takers took the samples in turn, or are only those that these are nearest to.
        idle: how many samples of the files that choose have no gradient.
    """

    taken: Taken
    targets: list[dict[str, Any]]
    weights: dict[str, float]
    turns_taken: bool = True
    idle: int = 0

    def about(self) -> dict[str, Any]:
        """Say of each chosen sample which target sample took it, as its how manieth, and with what unit affinity."""
        takers = [self.targets[t] for t in self.taken.takers]
        seen: Counter[int] = Counter()
        ranks = []
        for taker in self.taken.takers.tolist():
            seen[taker] += 1
            ranks.append(seen[taker])
        said = "choice {} of {file} {uid}" if self.turns_taken else "by herding, nearest to {file} {uid}"
        return {
            "weights": self.weights,
            "affinity": [round(value, 6) for value in self.taken.values.tolist()],
            "rank": ranks,
            "target_file": [taker["file"] for taker in takers],
            "target_uid": [taker["uid"] for taker in takers],
            "reason": [said.format(rank, **taker) for rank, taker in zip(ranks, takers, strict=True)],
        }

    def turns(self) -> str:
        """Say which part of the turns each target file has."""
        whole = sum(self.weights.values())
        parts = (f"{name} {100 * weight / whole:.0f} %" for name, weight in self.weights.items())
        idle = f", {self.idle} more without gradient" if self.idle else ""
        return f"{len(self.targets)} target samples{idle} (turns: {', '.join(parts)})"


@dataclass(frozen=True)
class AffinityRule:
    """How affinities to single target samples decide.

    Attributes:
        turns: how often the samples of a target file choose: in proportion to its mean loss, to the square
            root of that, or equally often.
        weights: weights of the target files that take the place of `turns`, such as `--weights.gqa 2`.
        keep: target files of tasks that must not get worse: they take no turns, and samples with the lowest affinity
            to their mean are passed over.
        keep_quantile: the part of the samples that is passed over for each file to keep.
        within: the rule within each source for strata.
        pool_share: for strata, how far the sources' shares are the pool's (1) or the rule's own (0).
    """

    flat: ClassVar[bool] = True
    turns: Turns = "root_loss"
    weights: dict[str, float] | None = None
    keep: str | list[str] | None = None
    keep_quantile: float = 0.1
    within: Literal["round_robin", "herding"] = "round_robin"
    pool_share: float = 0.5

    def choose(self, rule: str, source: Source, scorer: str, files: Sequence[str] | None, budget: Budget) -> Choice:
        """Choose by round_robin, herding or strata.

        Args:
            rule: which of them.
            source: the affinities.
            scorer: whose.
            files: the target files that choose; all but those to keep when None.
            budget: how much to choose, of the whole pool: row = uid.

        Raises:
            ValueError: a file is unknown, to choose and to keep at once, or without gradient; weights are not weights;
                the samples with affinities do not use up the budget.
        """
        if rule != "strata" and (self.within, self.pool_share) != (AffinityRule.within, AffinityRule.pool_share):
            raise ValueError("--within and --pool_share: no meaning without --rule strata; leave them out")
        if self.weights and self.turns != AffinityRule.turns:
            raise ValueError("--turns: no meaning beside --weights; leave it out")
        if not self.keep and self.keep_quantile != AffinityRule.keep_quantile:
            raise ValueError("--keep_quantile: no meaning without --keep; leave it out")
        chosen, kept = self._files(source.targets, files)
        directions = source.directions(scorer)
        numbers = _with_gradient(source.targets, directions, chosen)
        targets, own = [source.targets[t] for t in numbers], directions[numbers]
        weights = file_weights(targets, self.turns, self.weights)
        budget = budget.at(source.uids)
        if kept:
            budget = replace(budget, within=f"{budget.within} beside those that --keep passes over")
        allowed = self._allowed(source, scorer, kept)

        def features(rows: slice) -> np.ndarray:
            return source.unit(scorer, rows)

        def in_turns(part: Budget, among: np.ndarray) -> Taken:
            return round_robin(features, own, turn_order(targets, weights, part.most(among)), part, among)

        def herding(part: Budget, among: np.ndarray) -> Taken:
            rows = herd(features, own, shares(targets, weights), source.whitening(scorer), part, among)
            return _with_best(features, own, rows, len(among))

        rules = {"round_robin": in_turns, "herding": herding}
        if rule == "strata":
            taken = strata(rules[self.within], budget, allowed, self.pool_share)
        else:
            taken = rules[rule](budget, allowed)
        in_turn = (self.within if rule == "strata" else rule) == "round_robin"
        idle = len(_numbers(source.targets, chosen)) - len(numbers)
        return Choice(taken._replace(rows=source.uids[taken.rows]), targets, weights, in_turn, idle)

    def _files(self, targets: Sequence[Mapping[str, Any]], files: Sequence[str] | None) -> tuple[list[str], list[str]]:
        """Return the target files that choose, and those to keep."""
        known = list(dict.fromkeys(target["file"] for target in targets))
        kept = [self.keep] if isinstance(self.keep, str) else list(self.keep or ())
        chosen = [name for name in known if name not in kept] if files is None else list(files)
        if unknown := [name for name in [*chosen, *kept] if name not in known]:
            raise ValueError(f"no target file {unknown[0]!r} in the affinity file; it has {', '.join(known)}")
        if both := [name for name in kept if name in chosen]:
            raise ValueError(f"target {both[0]} can either choose or be kept; leave it out of --target or of --keep")
        for name in kept:
            if twin := next((other for other in chosen if _same(targets, name, other)), None):
                raise ValueError(
                    f"--keep {name}: holds the samples of target {twin}, which chooses; leave one of them out"
                )
        if not chosen:
            raise ValueError(f"all target files, {', '.join(known)}, are to be kept: none is left that chooses")
        return chosen, kept

    def _allowed(self, source: Source, scorer: str, kept: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Tell which samples are not among the worst for one of the files to keep."""
        if not 0 <= self.keep_quantile < 1:
            raise ValueError(f"keep_quantile must lie in [0, 1), got {self.keep_quantile}")
        count = len(source.uids)
        allowed = np.ones(count, dtype=bool)
        for name in kept:
            here = _numbers(source.targets, [name])
            mean = sample_weights([source.targets[t] for t in here]) @ source.combination(scorer)[here]
            if not mean.any():
                raise ValueError(f"--keep {name}: none of its samples has a gradient by {scorer}, so that none is kept")
            near = np.concatenate([source.unit(scorer, rows) @ mean for rows, _ in blocks(np.ones(count, bool), ROWS)])
            allowed[np.argsort(near, kind="stable")[: int(self.keep_quantile * count)]] = False
        return allowed


def _numbers(targets: Sequence[Mapping[str, Any]], files: Sequence[str]) -> list[int]:
    return [t for t, target in enumerate(targets) if target["file"] in files]


def _same(targets: Sequence[Mapping[str, Any]], one: str, other: str) -> bool:
    """Tell whether two target files hold the same samples, by what is known of these."""
    known = [[(t["uid"], t["weight"], t["loss"]) for t in targets if t["file"] == name] for name in (one, other)]
    return known[0] == known[1] and all(loss is not None for _, _, loss in known[0])


def _with_gradient(
    targets: Sequence[Mapping[str, Any]], directions: Float[np.ndarray, "t r"], files: Sequence[str]
) -> list[int]:
    """Return the numbers of the files' target samples that can choose; those without gradient like all alike."""
    found = [t for t in _numbers(targets, files) if directions[t].any()]
    for name in files:
        if not any(targets[t]["file"] == name for t in found):
            raise ValueError(f"target {name}: none of its samples has a gradient; nothing can be chosen for it")
    return found


def _with_best(
    features: Features, directions: Float[np.ndarray, "t r"], rows: Int[np.ndarray, " k"], count: int
) -> Taken:
    """Add to chosen rows the target that each is nearest to."""
    wanted = np.zeros(count, dtype=bool)
    wanted[rows] = True
    takers, values = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.float32)
    for block, here in blocks(wanted, ROWS):
        near = directions @ features(block)[here].T
        takers[block.start + here], values[block.start + here] = near.argmax(axis=0), near.max(axis=0)
    return Taken(rows, takers[rows], values[rows])
