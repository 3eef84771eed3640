"""What a choice looks like beside its pool, in few lines: sources, length, loss, norm, and what is odd."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from vlmsel.selection.facts import Facts

_SHOWN = 6  # sources


def describe(
    facts: Facts,
    uids: Int[np.ndarray, " k"],
    norms: Float[np.ndarray, " n"] | None = None,
    rule: str | None = None,
) -> tuple[list[str], list[str]]:
    """Return lines that compare a choice with what could be chosen, and warnings.

    Args:
        facts: of the whole pool.
        uids: what was chosen.
        norms: of the samples' gradients, NaN where there is none; None where they are not known.
        rule: by which it was chosen; None where none was.
    """
    names, counts = np.unique(facts.sources[facts.usable], return_counts=True)
    chosen, found = np.unique(facts.sources[uids], return_counts=True)
    own = dict(zip(chosen.tolist(), found.tolist(), strict=True))
    order = np.argsort(-counts, kind="stable")
    sources = [
        f"{names[i]} {100 * own.get(names[i], 0) / len(uids):.1f} % (pool {100 * counts[i] / counts.sum():.1f} %)"
        for i in order
    ]
    more = [f"and {len(sources) - _SHOWN} more"] if len(sources) > _SHOWN else []
    lines = ["sources: " + ", ".join(sources[:_SHOWN] + more)]
    known = {f"{'supervised ' if facts.supervised else ''}tokens": facts.tokens, "loss": facts.loss, "norm": norms}
    means = {name: _means(values, facts, uids) for name, values in known.items() if values is not None}
    if means:
        lines.append("mean of the choice (pool): " + ", ".join(f"{n} {a:.4g} ({b:.4g})" for n, (a, b) in means.items()))
    mend = "; --rule strata keeps every source" if rule not in (None, "strata") else ""
    return lines, _warnings(means, [str(names[i]) for i in order if names[i] not in own], mend)


def _means(values: np.ndarray, facts: Facts, uids: np.ndarray) -> tuple[float, float]:
    return float(np.nanmean(values[uids])), float(np.nanmean(values[facts.usable]))


def _warnings(means: dict[str, tuple[float, float]], absent: Sequence[str], mend: str) -> list[str]:
    warnings = []
    for name, (own, whole) in means.items():
        if name.endswith("tokens") and own <= whole / 2:
            warnings.append(
                f"warning: samples of the choice are at most half as long as the pool's ({own:.4g} {name} against "
                f"{whole:.4g}); compare it with others at equal --tokens"
            )
    if absent:
        shown = ", ".join(absent[:_SHOWN]) + (f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else "")
        warnings.append(f"warning: nothing was chosen from {shown}{mend}")
    return warnings
