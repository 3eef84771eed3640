"""GQA's metrics (Hudson and Manning 2019) by the rules of its official script, `eval.py`, as fractions.

What differs: answers are made comparable as LLaVA's converter does before the script sees them; the script prints
percent, we return fractions (but for `distribution`); what cannot be computed is None rather than 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vlmsel.evaluation.metrics import mean, require_answers


def gqa_answer(text: str) -> str:
    """Make an answer comparable to GQA's, as LLaVA does.

    >>> gqa_answer(" Yes.")
    'yes'
    """
    return text.strip().lower().rstrip(".")


def gqa_match(prediction: str, answer: str) -> float:
    """Return 1 for the right answer, 0 otherwise; the reference is compared as it stands."""
    return float(gqa_answer(prediction) == answer)


def gqa_metrics(questions: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str]) -> dict[str, float | None]:
    """Compute what GQA's script prints, for the records of a questions file and the answers by question id.

    `accuracy`, `binary`, `open`, `accuracy/<structural|semantic|steps|words>/<value>`, all on balanced questions;
    `consistency`: the accuracy on questions entailed by a rightly answered one; `distribution`: chi-squared distance
    of answers to references within global groups, lower is better, no fraction. None stands where it cannot be
    computed: no such question, an entailed question that was not given or asked, or data that the public files lack
    (`validity`, `plausibility`, `grounding`).

    Raises:
        ValueError: a balanced question has no answer, or none is balanced.
    """
    balanced = {identity: one for identity, one in questions.items() if one["isBalanced"]}
    require_answers(list(balanced), predictions, "balanced questions have no answer")
    right = {identity: gqa_match(predictions[identity], one["answer"]) for identity, one in balanced.items()}
    kinds: dict[str, list[float]] = {}
    for identity, one in balanced.items():
        for kind in _gqa_kinds(one):
            kinds.setdefault(kind, []).append(right[identity])
    return {
        "accuracy": mean(list(right.values())),
        **{name: mean(kinds[name]) if name in kinds else None for name in ("binary", "open")},
        "consistency": _gqa_consistency(questions, predictions, right),
        "distribution": _gqa_distribution(balanced, predictions),
        **dict.fromkeys(("validity", "plausibility", "grounding")),
        **{kind: mean(values) for kind, values in sorted(kinds.items()) if "/" in kind},
    }


def _gqa_kinds(question: Mapping[str, Any]) -> list[str]:
    """Return the names under which a question counts."""
    types, free = question["types"], ("exist", "query: name", "choose name")
    steps = [f"{step['operation']}: {step['argument']}" for step in question["semantic"]]
    return [
        "open" if types["structural"] == "query" else "binary",
        f"accuracy/structural/{types['structural']}",
        f"accuracy/semantic/{types['semantic']}",
        f"accuracy/steps/{sum(not any(word in step for word in free) for step in steps)}",
        f"accuracy/words/{len(question['question'].split())}",
    ]


def _gqa_consistency(
    questions: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str], right: Mapping[str, float]
) -> float | None:
    values = []
    for identity, one in questions.items():
        entailed = [other for other in one["entailed"] if other != identity]
        if not entailed or not right.get(identity):
            continue
        if any(other not in questions or other not in predictions for other in entailed):
            return None
        values.append(mean([gqa_match(predictions[other], questions[other]["answer"]) for other in entailed]))
    return mean(values) if values else None


def _gqa_distribution(balanced: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str]) -> float | None:
    """Return Σ_g n_g Σ_a (o_a - e_a)² / e_a / Σ_g n_g / 100.

    Over groups g of n_g questions, and over the answers a that are references in g; o_a and e_a count a among the
    predictions and the references of g.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for identity, one in balanced.items():
        if one["groups"]["global"] is not None:
            pair = (one["answer"], gqa_answer(predictions[identity]))
            groups.setdefault(one["groups"]["global"], []).append(pair)
    if not groups:
        return None
    total = 0.0
    for pairs in groups.values():
        expected, observed = Counter(gold for gold, _ in pairs), Counter(answer for _, answer in pairs)
        total += len(pairs) * sum((observed[answer] - count) ** 2 / count for answer, count in expected.items())
    return total / sum(map(len, groups.values())) / 100
