"""Print how well each scorer finds the training samples of a test sample's class, and write it beside the scores.

    python tools/identification_table.py runs/score/scores.parquet --test grammars_test.json [--target test]

The scores are those of `vlmsel score --targets.test grammars_test.json`, by single test samples
(`affinity.safetensors` beside the table); `source` is the class in both files.
Writes `identification.md`, the table, and `identification.json`, the numbers of every class and test sample.

AUC and recall are those of DataInf's study (Kwon et al. 2023, arXiv 2310.00902): does a scorer find the training
samples of a test sample's own class?

A model is tuned on samples of several classes, such as ten kinds of sums, and every test sample is a target of its own.
Its positives are the training samples of its class, and

    AUC     how well -I, the negative influence, ranks positives before the others (1/2 by chance)
    recall  the share of positives among the s training samples of lowest influence, s = number of positives

Influence has its sign here (lowest = most helpful), as the paper has it, not its absolute value; the paper's published
notebooks look at the lowest influences too, but hold no code for these two numbers. What differs: samples of equal
influence count as ranked by chance, so that a scorer that says nothing has AUC 1/2 and a recall of s/n whatever the
order of the file; and standard errors are given, over the drawing of test samples for one tuned model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from vlmsel import runs
from vlmsel.data.formats import read_samples
from vlmsel.evaluation.metrics import mean, standard_error
from vlmsel.scoring.affinity import NAME, Affinities
from vlmsel.scoring.table import read_table

HEAD = """\
| scorer | AUC | standard error | recall | standard error |
|---|---|---|---|---|
"""


class Identified(NamedTuple):
    """How well the training samples of one test sample's class are found."""

    kind: str  # the class
    auc: float
    recall: float


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over test samples, and the standard error of the mean; NaN for one sample."""

    mean: float
    deviation: float
    error: float
    count: int


def detection_auc(influences: ArrayLike, positives: ArrayLike) -> float:
    """Return the chance that a positive has lower influence than another sample, ties counting half.

    >>> detection_auc([-3.0, -1.0, -2.0, 0.0], [True, True, False, False])
    0.75
    """
    return float(roc_auc_score(positives, -np.asarray(influences)))


def class_recall(influences: ArrayLike, positives: ArrayLike) -> float:
    """Return the share of positives among as many samples of lowest influence, expected over the order of ties.

    >>> class_recall([-3.0, -1.0, -2.0, 0.0], [True, True, False, False])
    0.5
    >>> class_recall([0.0, 0.0, 0.0, 0.0], [True, False, False, False])
    0.25
    """
    values, same = np.asarray(influences), np.asarray(positives)
    places = int(same.sum())
    last = np.sort(values)[places - 1]
    below, tied = same[values < last], same[values == last]
    return float((below.sum() + tied.sum() * (places - len(below)) / len(tied)) / places)


def identify(
    influences: Sequence[ArrayLike], train_kinds: Sequence[str], test_kinds: Sequence[str]
) -> list[Identified]:
    """Measure every test sample.

    Args:
        influences: of all training samples on each test sample, [test, train]; lowest = most helpful.
        train_kinds: the classes of the training samples.
        test_kinds: the classes of the test samples.

    Raises:
        ValueError: numbers do not match or are not finite, or a class has no training sample or is the only one.
    """
    if len(influences) != len(test_kinds):
        raise ValueError(f"got influences on {len(influences)} test samples and the classes of {len(test_kinds)}")
    found, kinds = [], np.asarray(train_kinds)
    for number, (row, kind) in enumerate(zip(influences, test_kinds, strict=True)):
        values, same, where = np.asarray(row, dtype=np.float64), kinds == kind, f"test sample {number}"
        if values.shape != kinds.shape:
            raise ValueError(f"{where}: got {len(values)} influences and the classes of {len(kinds)} training samples")
        if len(bad := np.flatnonzero(~np.isfinite(values))):
            raise ValueError(
                f"{where}: {len(bad)} training samples have no influence, the first {bad[0]}; leave them out"
            )
        if same.all() or not same.any():
            raise ValueError(
                f"{where}: {same.sum()} of {len(same)} training samples are of its class {kind!r}; give training "
                "samples of its class and of another"
            )
        found.append(Identified(kind, detection_auc(values, same), class_recall(values, same)))
    return found


def summary(found: Sequence[Identified]) -> dict[str, Spread]:
    """Return AUC and recall over test samples."""
    spreads = {}
    for name in ("auc", "recall"):
        values = [getattr(one, name) for one in found]
        error = standard_error(values)
        spreads[name] = Spread(mean(values), error * math.sqrt(len(values)), error, len(values))
    return spreads


def by_class(found: Sequence[Identified]) -> dict[str, dict[str, Spread]]:
    """Return AUC and recall over the test samples of each class, in the order of their first ones."""
    return {kind: summary([one for one in found if one.kind == kind]) for kind in dict.fromkeys(o.kind for o in found)}


def study(scores: Path, test: Path, target: str) -> dict[str, list[Identified]]:
    """Measure every scorer whose affinities lie beside a table; training samples without scores are left out and
    counted.

    Raises:
        ValueError: table and test file do not belong together.
    """
    columns, _ = read_table(scores)
    samples = {sample.uid: sample.source for sample in read_samples(test).samples}
    found = Affinities(scores.parent / NAME)
    rows = [row for row, one in enumerate(found.targets) if one["file"] == target]
    if not rows:
        files = ", ".join(dict.fromkeys(one["file"] for one in found.targets))
        raise ValueError(f"{found.path}: no samples of a target {target!r}; it has {files}")
    uids = [found.targets[row]["uid"] for row in rows]
    if strange := [uid for uid in uids if uid not in samples]:
        raise ValueError(f"{test}: has no usable sample {strange[0]}, which {scores} has scores on; give its test file")
    if lacking := len(columns["uid"]) - len(found.uids):
        print(f"{scores}: {lacking} training samples without scores are left out")
    kinds, own = columns["source"][found.uids].tolist(), [samples[uid] for uid in uids]
    influences = {name: -found.block(name, slice(None), unit=False)[rows] for name in found.about["scorers"]}
    return {name: identify(list(one), kinds, own) for name, one in influences.items()}


def shown(spread: Spread) -> str:
    """Write `0.950 ± 0.060`, mean and standard deviation."""
    return f"{spread.mean:.3f} ± {spread.deviation:.3f}"


def as_markdown(found: Mapping[str, Sequence[Identified]]) -> str:
    """Return the table scorer x {AUC, recall}: mean ± standard deviation over test samples, and standard errors."""
    rows = []
    for scorer, each in found.items():
        auc, recall = summary(each)["auc"], summary(each)["recall"]
        rows.append(f"| {scorer} | {shown(auc)} | {auc.error:.3f} | {shown(recall)} | {recall.error:.3f} |")
    count = len(next(iter(found.values())))
    return f"{HEAD}" + "\n".join(rows) + f"\n\nMean ± standard deviation over {count} test samples, of -I.\n"


def as_json(found: Mapping[str, Sequence[Identified]]) -> dict[str, Any]:
    """Return all numbers, JSON-able."""
    return {
        scorer: {
            "summary": {name: asdict(spread) for name, spread in summary(each).items()},
            "by_class": {
                kind: {name: asdict(spread) for name, spread in spreads.items()}
                for kind, spreads in by_class(each).items()
            },
            "test_samples": [one._asdict() for one in each],
        }
        for scorer, each in found.items()
    }


def main() -> None:
    """Print the table and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--target", default="test", help="the name that the test file was scored under")
    args = parser.parse_args()
    try:
        found = study(args.scores, args.test, args.target)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    table = as_markdown(found)
    runs.write_text(args.scores.parent / "identification.md", table)
    runs.write_json(args.scores.parent / "identification.json", as_json(found))
    print(table, end="")


if __name__ == "__main__":
    main()
