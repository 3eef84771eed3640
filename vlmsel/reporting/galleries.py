"""Galleries of a scored pool: what target samples took and why, the most helpful and harmful, near-duplicates, and
what was passed over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmsel.reporting.cards import Cards, Opener, Texts, Thumbnails
from vlmsel.reporting.folders import Choice
from vlmsel.reporting.parts import Card, Gallery, Part, Prose, Section
from vlmsel.reporting.scored import Scored

TAKERS = 8  # target samples that are shown with what they took
PAIRED = 1500  # chosen samples among which near-duplicates are looked for
ALIKE = 0.95  # cosine from which two samples are near-duplicates
RANKED = 4  # scorers whose ranks stand on a card


@dataclass(frozen=True)
class Plan:
    """A gallery before its samples are read: uids, and for each what is to be said beside the usual; the target sample
    that leads."""

    title: str
    note: str
    uids: Sequence[int]
    said: Mapping[int, tuple[tuple[str, str], ...]]
    lead: tuple[str, int] | None = None


def samples_section(scored: Scored, main: str, most: int, opened: Opener, images: str | None = None) -> Section:
    """Show samples: at most `most` in each gallery, pictures from `images` or where the run had them."""
    plans = [plan for plan in _plans(scored, main, most) if plan.uids]
    config = scored.run.config
    folder = images or config.get("images")
    thumbnails = Thumbnails(None if folder is None else Path(folder), opened)
    wanted = {uid for plan in plans for uid in plan.uids}
    pool = Cards(Texts.read(scored.about["pool"], wanted, scored.about["pool_sha256"]), thumbnails)
    leads = _leads(plans, config, thumbnails, opened, images)
    parts: list[Part] = [Prose(problem, "open") for problem in [pool.texts.problem] if problem]
    seen: Counter[int] = Counter()
    for plan in plans:
        lead = None if plan.lead is None else _lead(scored, *plan.lead, leads)
        seen.update(plan.uids)
        parts.append(Gallery(plan.title, plan.note, [_card(scored, pool, main, uid, plan) for uid in plan.uids], lead))
    return Section("Samples", parts)


def _plans(scored: Scored, main: str, most: int) -> Iterator[Plan]:
    choice = scored.choice()
    if choice is not None:
        yield from _takers(choice, most)
    ranks = scored.ranks(main)
    order = [int(uid) for uid in np.argsort(ranks, kind="stable") if np.isfinite(ranks[uid])]
    yield Plan("Most helpful", f"By {main}, over all targets: the lowest influence.", order[:most], {})
    if choice is not None:
        note = f"{choice.name}: the first that were chosen."
        yield Plan("First chosen", note, choice.manifest["uids"][:most], _affinities(choice))
        yield from _alike(scored, choice, main, most)
        yield from _passed_over(scored, choice, main, most)
    yield Plan("Most harmful", f"By {main}, over all targets: the highest influence.", order[::-1][:most], {})


def _affinities(choice: Choice) -> dict[int, tuple[tuple[str, str], ...]]:
    known = choice.manifest
    if "affinity" not in known:
        return {}
    rows = zip(known["uids"], known["affinity"], known["target_file"], known["target_uid"], strict=True)
    return {uid: (("affinity", f"{value:.3f}"), ("taken by", f"{file} {target}")) for uid, value, file, target in rows}


def _takers(choice: Choice, most: int) -> Iterator[Plan]:
    """Give target samples, those of all files in turn and the greediest first, each with what it took."""
    known = choice.manifest
    if "target_uid" not in known:
        return
    takers = list(zip(known["target_file"], known["target_uid"], strict=True))
    counts, said = Counter(takers), _affinities(choice)
    by_file = [
        [one for one, _ in counts.most_common() if one[0] == file] for file in dict.fromkeys(known["target_file"])
    ]
    turns = [own[turn] for turn in range(max(map(len, by_file), default=0)) for own in by_file if turn < len(own)]
    for file, uid in turns[:TAKERS]:
        own = [one for one, taker in zip(known["uids"], takers, strict=True) if taker == (file, uid)]
        count = min(len(own), most // 2)
        note = f"Taken by its unit affinity: {len(own)}; shown: {count}, its first choices first."
        yield Plan(f"Target sample {uid} of {file} and what it took", note, own[: most // 2], said, (file, uid))


def _alike(scored: Scored, choice: Choice, main: str, most: int) -> Iterator[Plan]:
    """Give pairs of chosen samples that the scorer hardly tells apart."""
    if scored.affinities is None or main not in scored.affinities.about["scorers"]:
        return
    chosen = np.asarray(choice.manifest["uids"], dtype=np.int64)
    uids = chosen[np.isin(chosen, scored.affinities.uids)][:PAIRED].tolist()
    rows = np.searchsorted(scored.affinities.uids, uids).tolist()
    near = [scored.affinities.block(main, slice(row, row + 1))[:, 0] for row in rows]
    cosines = np.triu(_cosines(np.stack(near)), 1) if near else np.zeros((0, 0))
    pairs = np.argwhere(cosines > ALIKE)
    pairs = pairs[np.argsort(-cosines[tuple(pairs.T)], kind="stable")][: most // 2]
    said: dict[int, tuple[tuple[str, str], ...]] = {}
    for one, other in pairs.tolist():
        for here, there in ((one, other), (other, one)):
            said.setdefault(uids[here], (("like sample", str(uids[there])), ("cosine", f"{cosines[one, other]:.3f}")))
    shown = list(dict.fromkeys(uids[i] for pair in pairs.tolist() for i in pair))
    note = (
        f"Chosen samples whose affinities to all targets by {main} point the same way (cosine above {ALIKE}), "
        f"among the first {len(uids)} chosen; --rule herding thins them."
    )
    yield Plan("Near-duplicates among the chosen", note, shown, said)


def _cosines(rows: np.ndarray) -> np.ndarray:
    """Return the cosine of every two rows, 0 where one is 0. [n, r] -> [n, n]"""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit @ unit.T


def _passed_over(scored: Scored, choice: Choice, main: str, most: int) -> Iterator[Plan]:
    """Give samples of high affinity that were not chosen."""
    near = scored.unit_affinities(main)
    if scored.affinities is None or not near:
        return
    stacked = np.stack(list(near.values()))
    best, files = stacked.max(axis=0), list(near)
    left = ~np.isin(scored.affinities.uids, choice.manifest["uids"])
    rows = [int(row) for row in np.argsort(-best, kind="stable") if left[row]][:most]
    said = {}
    for row in rows:
        file = files[int(stacked[:, row].argmax())]
        said[int(scored.affinities.uids[row])] = (("affinity", f"{best[row]:.3f}"), ("nearest file", file))
    note = f"Not in {choice.name}, though their mean unit affinity by {main} to a target file's samples is high."
    yield Plan("Passed over", note, list(said), said)


def _card(scored: Scored, pool: Cards, main: str, uid: int, plan: Plan) -> Card:
    columns, said = scored.columns, plan.said.get(uid, ())
    facts: list[tuple[str, str]] = list(said)
    keys: dict[str, float] = {"tokens": float(columns["tokens"][uid])}
    order = [main, *(one for one in scored.scorers if one != main)][:RANKED]
    ranks = [(one, scored.ranks(one)[uid]) for one in order]
    known = ", ".join(f"{one} {rank:.0f}" for one, rank in ranks if np.isfinite(rank))
    facts.append(("rank", f"{known} of {int(scored.usable.sum())}"))
    facts.append(("tokens", f"{columns['tokens'][uid]:.0f}, answer {columns[scored.length][uid]:.0f}"))
    if np.isfinite(columns["loss"][uid]):
        facts.append(("loss", f"{columns['loss'][uid]:.3f}"))
        keys["loss"] = float(columns["loss"][uid])
    if np.isfinite(ranks[0][1]):
        keys["rank"] = float(ranks[0][1])
    if value := dict(said).get("affinity"):
        keys["affinity"] = float(value)
    return pool.card(uid, f"Sample {uid} · {scored.sources[uid]}", facts, keys)


# Target samples


def _leads(
    plans: Sequence[Plan], config: Mapping[str, Any], pool: Thumbnails, opened: Opener, images: str | None
) -> dict[str, Cards]:
    """Return what makes cards of the target samples, by file."""
    files = {name: file for name, file in (config.get("targets") or {}).items()} if _paths(config) else {}
    other = None if images else config.get("target_images")
    thumbnails = pool if other is None else Thumbnails(Path(other), opened)
    wanted: dict[str, set[int]] = {}
    for plan in plans:
        if plan.lead is not None:
            wanted.setdefault(plan.lead[0], set()).add(plan.lead[1])
    return {file: Cards(Texts.read(files[file], uids), thumbnails) for file, uids in wanted.items() if file in files}


def _paths(config: Mapping[str, Any]) -> bool:
    """Tell whether a run names its targets' files, as `rescore` does not."""
    return isinstance(config.get("targets"), dict)


def _lead(scored: Scored, file: str, uid: int, leads: Mapping[str, Cards]) -> Card:
    assert scored.affinities is not None
    loss = next((one["loss"] for one in scored.affinities.targets if (one["file"], one["uid"]) == (file, uid)), None)
    facts = [] if loss is None else [("loss", f"{loss:.3f}")]
    title = f"Target sample {uid} of {file}"
    if file not in leads:
        return Card(uid, title, "text not known", (), facts=facts)
    return leads[file].card(uid, title, facts, {})
