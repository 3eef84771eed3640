"""How well scores find mislabelled samples: pure functions of influences and of which labels are wrong.

Samples are inspected from the highest score down (influence: highest = most harmful). With n samples of which W are
wrong, rt(p) is the number of wrong ones among the p·n highest scores, over W: the detection rate of HyperINF's and
DataInf's figures (arXiv 2410.05090, 2310.00902). It is linear between whole samples, and samples of equal score count
by their mean over all orders. The best possible curve is min(p·n / W, 1); random inspection finds p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from vlmsel.studies.intervals import summary
from vlmsel.studies.study import gather

TARGET = "validation"
METRICS, SCORES, LABELS, LIKELY = "metrics.json", "scores.parquet", "labels.csv", "likely.csv"  # of a seed
POINTS = 101  # of a curve, from 0 to 100 % inspected


def found_wrong(scores: ArrayLike, wrong: ArrayLike) -> NDArray[np.float64]:
    """Return how many wrong samples are among the k highest scores, for k from 0 to n. [n + 1]

    Raises:
        ValueError: the lengths differ, a score is not a number, or no sample or every sample is wrong.

    >>> found_wrong([3.0, 1.0, 2.0, 0.0], [True, False, False, True]).tolist()
    [0.0, 1.0, 1.0, 1.0, 2.0]
    >>> found_wrong([1.0, 1.0, 0.0], [True, False, False]).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    values, bad = _checked(scores, wrong)
    different, group = np.unique(-values, return_inverse=True)
    samples = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(different)))])
    hits = np.concatenate([[0.0], np.cumsum(np.bincount(group, weights=bad, minlength=len(different)))])
    return np.interp(np.arange(len(values) + 1), samples, hits)


def detection_rate(scores: ArrayLike, wrong: ArrayLike, inspected: ArrayLike) -> NDArray[np.float64]:
    """Return rt(p) for the shares p inspected, 0 to 1.

    >>> detection_rate([3.0, 1.0, 2.0, 0.0], [True, False, False, True], [0.25, 0.5, 0.875]).tolist()
    [0.5, 0.5, 0.75]
    """
    found = found_wrong(scores, wrong)
    return np.interp(np.asarray(inspected) * (len(found) - 1), np.arange(len(found)), found) / found[-1]


def oracle_rate(share: float, inspected: ArrayLike) -> NDArray[np.float64]:
    """Return rt(p) of scores that put all wrong samples, a `share` of all, first."""
    return np.minimum(np.asarray(inspected, dtype=np.float64) / share, 1.0)


def detection_metrics(scores: ArrayLike, wrong: ArrayLike) -> dict[str, float]:
    """Return recall and precision at 20 % and 40 % inspected, AUC, average precision, and the part to inspect to find
    all, as fractions.

    >>> found = detection_metrics([5.0, 4.0, 3.0, 2.0, 1.0], [True, False, True, False, False])
    >>> {name: round(value, 3) for name, value in found.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'recall_20': 0.5, 'recall_40': 0.5, 'precision_20': 1.0, 'precision_40': 0.5, 'auc': 0.833,
     'average_precision': 0.833, 'inspected_all': 0.6}
    """
    values, bad = _checked(scores, wrong)
    at_20, at_40 = (float(rate) for rate in detection_rate(values, bad, [0.2, 0.4]))
    share = float(bad.mean())
    return {
        "recall_20": at_20,
        "recall_40": at_40,
        "precision_20": at_20 * share / 0.2,
        "precision_40": at_40 * share / 0.4,
        "auc": float(roc_auc_score(bad, values)),
        "average_precision": float(average_precision_score(bad, values)),
        "inspected_all": float((values >= values[bad > 0].min()).mean()),
    }


def measured(scores: Mapping[str, ArrayLike], wrong: ArrayLike) -> dict[str, dict[str, Any]]:
    """Return what every scorer finds: `detection`, its metrics, and `curves`, rt(p) at `POINTS` shares inspected."""
    points = np.linspace(0, 1, POINTS)
    return {
        "detection": {name: detection_metrics(own, wrong) for name, own in scores.items()},
        "curves": {name: detection_rate(own, wrong, points).round(6).tolist() for name, own in scores.items()},
    }


def agreement(scores: ArrayLike, reference: ArrayLike) -> dict[str, float]:
    """Return the Pearson and Spearman correlation of scores with others, NaN where one side is constant.

    >>> found = agreement([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])
    >>> round(found["pearson"], 3), round(found["spearman"], 3)
    (0.982, 1.0)
    """
    one, other = np.asarray(scores, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return {"pearson": math.nan, "spearman": math.nan}
    ranks = stats.rankdata(one), stats.rankdata(other)
    return {"pearson": float(np.corrcoef(one, other)[0, 1]), "spearman": float(np.corrcoef(*ranks)[0, 1])}


def suspicion(scores: ArrayLike) -> NDArray[np.float64]:
    """Return the share of the other samples that each score is above, 1 for the highest; equals count half.

    >>> suspicion([3.0, 1.0, 2.0]).tolist(), suspicion([1.0, 1.0]).tolist()
    ([1.0, 0.0, 0.5], [0.5, 0.5])
    """
    values = np.asarray(scores, dtype=np.float64)
    return (stats.rankdata(values) - 1) / max(1, len(values) - 1)


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> dict[str, float]:
    """Return the share of right predictions, and that of the most frequent class, which a constant answer reaches.

    >>> accuracy([0, 1, 1, 1], [0, 1, 1, 0])
    {'accuracy': 0.75, 'majority': 0.5}
    """
    if len(predictions) != len(labels) or not labels:
        raise ValueError(f"need one prediction per label, got {len(predictions)} for {len(labels)}")
    right = sum(one == other for one, other in zip(predictions, labels, strict=True))
    most = max(labels.count(label) for label in set(labels))
    return {"accuracy": right / len(labels), "majority": most / len(labels)}


def over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Turn the seeds' metrics into lists over seeds, with mean and half-width of the interval; fractions throughout.

    `detection` and `agreement` are there where all seeds have them.
    """
    found: dict[str, Any] = {
        "seeds": len(seeds),
        "validation": {name: [one[name] for one in seeds] for name in ("accuracy", "majority")},
        "clean": all(one.get("validation", 1) for one in seeds),
        "seconds": [one["seconds"] for one in seeds],
    }
    if all(one.get("out_of_fold") for one in seeds):
        found["out_of_fold"] = {name: [one["out_of_fold"][name] for one in seeds] for name in seeds[0]["out_of_fold"]}
    for kind in ("detection", "agreement"):
        if all(one[kind] for one in seeds):
            found[kind] = gather([one[kind] for one in seeds])
            found[f"{kind}_mean_and_interval"] = {
                scorer: {name: summary(values) for name, values in row.items()} for scorer, row in found[kind].items()
            }
    if "detection" in found:
        found["curves"] = {scorer: [one["curves"][scorer] for one in seeds] for scorer in found["detection"]}
    return found


def _checked(scores: ArrayLike, wrong: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, bad = np.asarray(scores, dtype=np.float64), np.asarray(wrong, dtype=np.float64)
    if values.ndim != 1 or values.shape != bad.shape:
        raise ValueError(f"scores have shape {list(values.shape)} and labels {list(bad.shape)}; expected [n] and [n]")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} scores are not finite; leave these samples out")
    if not 0 < bad.sum() < len(bad):
        raise ValueError(
            f"{int(bad.sum())} of {len(bad)} labels are wrong; detection rates need wrong ones and right ones"
        )
    return values, bad
