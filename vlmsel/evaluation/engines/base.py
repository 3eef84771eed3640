"""What an evaluation asks of a model, whatever library it comes from.

An engine can answer questions about images (`prepare`, then `generate` or `first_words`), score texts that follow
others (`loglikelihoods`), or sort texts into classes (`classify`); what it cannot do ends in one line that says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Ask:
    """One question about one image: the image's path within the folder `images`, "" for a question without."""

    id: str
    prompt: str
    images: Path
    image: str


Spellings = Sequence[Sequence[str]]


class Engine:
    """A model as evaluations use it. Concrete engines override what their model can do.

    `about` is what of it belongs to a result's protocol, such as the template; `cut` counts the texts so far that were
    longer than the model takes; `classifies` says that it sorts texts rather than scoring them; `ahead` says that a
    batch is best prepared while the one before is answered, which gains nothing where both would share the CPU.
    """

    kind: ClassVar[str] = "this model"
    classifies: ClassVar[bool] = False
    about: dict[str, Any]
    cut: int = 0
    ahead: bool = False

    def prepare(self, asks: Sequence[Ask]) -> Any:
        """Read the images of a batch and encode it; may run in a thread of its own. All of it have one, or none has."""
        raise self._cannot("read images", "a vision-language model")

    def generate(self, batch: Any, max_new_tokens: int) -> list[str]:
        """Answer what `prepare` returned, greedily."""
        raise self._cannot("answer questions about images", "a vision-language model")

    def first_words(self, batch: Any, words: Spellings) -> list[list[float]]:
        """Return, per question, the log-probability that the answer begins with each word, in any of its spellings."""
        raise self._cannot("answer questions about images", "a vision-language model")

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return log p(continuation | context) in nats for each pair of texts."""
        raise self._cannot("score text", "a causal language model")

    def classify(self, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        """Return the score of each class for each text or pair of texts."""
        raise self._cannot("classify", "a sequence classifier")

    def _cannot(self, what: str, instead: str) -> ValueError:
        return ValueError(f"{self.kind} cannot {what}; evaluate {instead} on this task")


@contextmanager
def within(what: str | None) -> Iterator[None]:
    """Name what a fault belongs to: a question, a benchmark or a model; None where there is only one."""
    try:
        yield
    except (ValueError, OSError) as problem:
        if what is None:
            raise
        raise ValueError(f"{what}: {problem}") from problem


def first_ids(rows: Sequence[Sequence[Sequence[int]]], words: Spellings) -> list[list[int]]:
    """Return the first token ids that tell the words apart, from the ids of each word's spellings.

    A token that spellings of two words begin with says nothing and is left out: some tokenizers know " yes" and " no"
    as tokens and begin " Yes" and " No" with the blank.

    Raises:
        ValueError: a word has no token of its own.
    """
    firsts = [{ids[0] for ids in spellings} for spellings in rows]
    own = [one - set().union(*(firsts[:i] + firsts[i + 1 :])) for i, one in enumerate(firsts)]
    if not all(own):
        names = " and ".join(repr(spellings[0]) for spellings in words)
        raise ValueError(
            f"the tokenizer begins {names} with the same token, so that the first token does not tell them apart; "
            "use --pope_mode text"
        )
    return [sorted(one) for one in own]


def word_scores(logits: Tensor, chosen: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return log Σ p over each word's token ids, for the logits of first tokens. [n, vocabulary]"""
    return [[float(row[list(ids)].logsumexp(dim=0)) for ids in chosen] for row in logits.log_softmax(dim=1)]
