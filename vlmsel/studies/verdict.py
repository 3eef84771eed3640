"""What comes of a duel: is the choice better than random ones of both kinds, and what follows; numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlmsel.studies.intervals import interval
from vlmsel.studies.study import kind_of

CHOSEN, RANDOM, MIXTURE = "chosen", "random", "same mixture"
LOSS = "loss"  # the measure of which less is better
ByFile = dict[str, float]  # a measure on the judging half, by target file


def verdict(answers: Sequence[Mapping[str, ByFile]], measure: str = LOSS) -> dict[str, Any]:
    """Compare the choice with both kinds of random choices, paired by seed: by how much its held-out measure is better
    in the mean over the target files, 95 % t-interval over seeds, and what follows. Without draws of the choice's
    mixture the random ones stand for them.

    >>> def seed(*losses):
    ...     return dict(zip(["chosen", "random 1", "same mixture 1"], [{"a": one} for one in losses]))
    >>> verdict([seed(1.0, 2.0, 1.5), seed(1.1, 2.2, 1.7), seed(0.9, 1.8, 1.5)])["advice"]
    'use it'
    """
    found: dict[str, Any] = {"measure": measure}
    sign, drawn = -1 if measure == LOSS else 1, {kind_of(arm) for arm in answers[0]}
    for kind in (RANDOM, MIXTURE):
        control = kind if kind in drawn else RANDOM
        gains = [sign * (_mean(one, CHOSEN) - _mean(one, control)) for one in answers]
        mean, half = interval(gains)
        word = "better" if mean - half > 0 else "worse" if mean + half < 0 else "not told apart"
        known = None if math.isnan(half) else half
        found[kind] = {"gain": mean, "half_width": known, "verdict": word, "per_seed": gains}
    random, mixture = (found[kind]["verdict"] for kind in (RANDOM, MIXTURE))
    if len(answers) == 1:
        advice = "one seed tells nothing; take --seeds 3 or more"
    elif random == "better":
        advice = "use it" if mixture == "better" else "set a quota by its mixture and draw at random"
    else:
        advice = "do not use it here; draw at random"
    return {**found, "verdict": random, "advice": advice}


def said(found: Mapping[str, Any]) -> str:
    """Say a verdict in one sentence, with the advice."""
    words = {"better": "better than", "worse": "worse than", "not told apart": "not told apart from"}
    random, mixture = (words[found[kind]["verdict"]] for kind in (RANDOM, MIXTURE))
    return (
        f"the choice is {random} a random one and {mixture} a random one of its own mixture ({held_out(found)}, 95 %): "
        f"{found['advice']}"
    )


def held_out(found: Mapping[str, Any]) -> str:
    """Name what a verdict went by; before there were metrics it was the loss."""
    return f"held-out {found.get('measure', LOSS)}"


def _mean(answers: Mapping[str, ByFile], kind: str) -> float:
    """Return the mean over draws and target files of one kind of choice."""
    own = [one for arm, one in answers.items() if kind_of(arm) == kind]
    return sum(sum(one.values()) / len(one) for one in own) / len(own)
