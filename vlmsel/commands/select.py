"""Choose a part of a pool by a rule, and write it in the form it came in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vlmsel import progress, runs
from vlmsel.commands.options import refuse_idle
from vlmsel.data.formats import pool_digest
from vlmsel.data.formats.choice import Written, write_choice
from vlmsel.scoring import affinity
from vlmsel.scoring.table import read_table, score_columns
from vlmsel.selection import DRAWN, AffinityRule, Ask, Draw, Facts, Rule, combine_targets, describe, top
from vlmsel.selection.combine import places, target_ranks


class Picked(NamedTuple):
    """Chosen uids, first ones first; how they came about, in words and for the manifest; the samples' norms by uid."""

    uids: np.ndarray
    how: str
    about: dict[str, Any]
    norms: np.ndarray | None = None


def select(
    pool: str,
    out: str,
    scores: str | None = None,
    scorer: str = "HyperINF",
    rule: Rule | None = None,
    target: str | list[str] | None = None,
    combine: Literal["rank", "mean"] = "rank",
    ask: Ask = Ask(),
    affinities: AffinityRule = AffinityRule(),
    draw: Draw = Draw(),
    write: Written = "pool",
    config: str = "",
) -> None:
    """Choose samples and write them in the pool's own form, with a manifest beside them.

    Args:
        pool: the pool that was scored; refused when it is another.
        out: the file to write; `<out>.manifest.json` says which samples it holds and why.
        scores: the table `scores.parquet` of `vlmsel score`, its run folder, or that of `choose`. Random needs none.
        scorer: whose scores or affinities decide; Random, Loss (highest first) and Length (longest first) need none.
        rule: round_robin (the default), herding, strata: by affinities to target samples; top: by influence on means.
        target: the target file that counts, or a list of them; all of them when left out.
        combine: how several targets count for top: rank lets each choose an equal part, mean averages the scores.
        ask: how much to choose.
        affinities: how affinities decide.
        draw: how Random, Loss and Length choose.
        write: the records in the pool's form, or JSON that copies none: their uids, or a weight (1, 0) for each record.
        config: the resolved configuration as text.
    """
    path = None if scores is None else _table(Path(scores))
    if Path(out).resolve() in [Path(one).resolve() for one in (pool, path, draw.like) if one is not None]:
        raise ValueError(f"{out}: --out would replace a file that is read; choose another name")
    _refuse_other(out, config)
    table, about = (None, {}) if path is None else read_table(path, pool)
    facts = Facts.of_pool(pool) if table is None else Facts.of_table(table)
    digest = pool_digest(pool) if table is None else about["pool_sha256"]
    files = [target] if isinstance(target, str) else target
    if rule != "top" and combine != "rank":
        raise ValueError("--combine: no meaning without --rule top; leave it out")
    if rule is None and scorer in DRAWN:
        refuse_idle(f"--scorer {scorer}", affinities)
        if files is not None:
            raise ValueError(f"--target: no meaning for --scorer {scorer}; leave it out")
        uids = draw.choose(scorer, facts, ask, digest)
        picked = Picked(uids, scorer, {"scorer": scorer, **draw.reasons(scorer, facts, uids)})
    elif table is None or path is None:
        needless = "without --rule it needs none" if scorer in DRAWN else "Random needs none"
        raise ValueError(f"--scorer {scorer} needs --scores, the run folder of `vlmsel score`; {needless}")
    elif rule == "top":
        refuse_idle("--rule top", affinities, draw)
        picked = _top(table, score_columns(table, scorer, files), combine, ask.budget(facts))
    else:
        refuse_idle("rules on affinities", draw)
        found = affinity.beside(path, pool, scorer, about, rule)
        picked = _by_affinity(found, scorer, rule or "round_robin", files, affinities, ask, facts)
    origin = {"config": config, "pool": pool, "pool_sha256": digest, "written": write}
    _tell(out, picked, facts, origin, path, about.get("warmed_up", []), about.get("missing", 0))


def _table(path: Path) -> Path:
    """Return the score table that a path means, which may be a run folder of `score` or `choose`."""
    inner = path / "score/scores.parquet"
    return path if not path.is_dir() else inner if inner.is_file() else path / "scores.parquet"


def _refuse_other(out: str, config: str) -> None:
    """Refuse to replace a file that is not an earlier result of the same choice."""
    manifest = Path(f"{out}.manifest.json")
    if not Path(out).exists():
        return
    if not manifest.is_file():
        raise ValueError(f"{out}: exists and is no choice of vlmsel (no manifest beside it); choose another --out")
    if difference := runs.different(runs.read_json(manifest).get("config", ""), config):
        raise ValueError(f"{out}: holds another choice ({difference}); choose another --out or delete it")


def _top(table: dict[str, np.ndarray], columns: list[str], combine: str, budget: Any) -> Picked:
    scores = np.stack([table[name] for name in columns])
    uids = top(values := combine_targets(scores, combine), budget)
    (ranks, count), best = places(values, uids), target_ranks(scores)[:, uids].argmin(axis=0)
    by = [columns[t] for t in best] if combine == "rank" else [f"the mean of {', '.join(columns)}"] * len(uids)
    about = {
        "rule": "top",
        "columns": columns,
        "combine": combine,
        "influence": {name: table[name][uids].tolist() for name in columns},
        "score": values[uids].tolist(),
        "rank": ranks,
        "reason": [f"{rank} of {count}, by {name}" for rank, name in zip(ranks, by, strict=True)],
    }
    return Picked(uids, f"{', '.join(columns)} (lowest = most helpful)", about)


def _by_affinity(
    found: affinity.Affinities, scorer: str, rule: str, files: Any, how: AffinityRule, ask: Ask, facts: Facts
) -> Picked:
    choice = how.choose(rule, found, scorer, files, ask.budget(facts))
    measure = found.measure(scorer)
    by = "norms: {norms}; {columns} columns hold {share:.1%} of the targets".format(**measure)
    said, about = f"{scorer}, {rule} over {choice.turns()}; {by}", {"scorer": scorer, "rule": rule, **choice.about()}
    about |= {"affinities": measure}
    return Picked(choice.taken.rows, said, about, found.norms(scorer, len(facts)))


def _tell(
    out: str,
    picked: Picked,
    facts: Facts,
    about: dict[str, Any],
    path: Path | None,
    warmed_up: list[int],
    missing: int,
) -> None:
    """Write the manifest of a choice and say what it looks like; `warmed_up` are uids that the scored model knows, and
    so many samples lack their picture."""
    uids = picked.uids.tolist()
    sources = Counter(facts.sources[sorted(uids)].tolist())
    about["scores_sha256"] = None if path is None else runs.file_hash(path)
    about["warmed_up"] = known = int(np.isin(picked.uids, warmed_up).sum())
    unusable = len(facts) - int(facts.usable.sum())
    about |= {"of": len(facts), "unusable": unusable, "sources": dict(sources.most_common()), "uids": uids}
    write_choice(out, about["pool"], uids, len(facts), about["written"], about | picked.about)
    lines, warnings = describe(facts, picked.uids, picked.norms, picked.about.get("rule"))
    if warmed_up:
        share = 100 * len(warmed_up) / len(facts)
        lines.append(f"in the warm-up: {100 * known / len(uids):.1f} % of the choice (pool {share:.1f} %)")
    if unusable:
        why = f" ({missing} lack their picture)" if missing else ""
        lines.append(
            f"{unusable} of the pool's {len(facts)} records cannot be chosen{why}; fractions are of all {len(facts)}"
        )
    data = out if about["written"] == "pool" else f"{about['pool']} --only {out}"
    progress.ended(
        f"{out}: {len(uids)} of {len(facts)} samples by {picked.how}", *lines, *warnings,
        then=f"vlmsel tune --model MODEL --data {data} --out RUN",
    )  # fmt: skip
