"""How much there is to read in files of samples, for a plan: by the model's own tokenizer where it has one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vlmsel.data.dataset import Reading
from vlmsel.data.formats import read_samples
from vlmsel.data.sample import Sample
from vlmsel.models.counts import Counts
from vlmsel.models.subject import Subject
from vlmsel.planning.costs import Amount
from vlmsel.scoring.batches import seeded_part

LOOKED = 2000  # samples whose lengths are found; all of a smaller file
LETTERS = 4  # of a token, where there is no tokenizer
SUPERVISED = 0.5  # of the text, where nothing is known of it


@dataclass(frozen=True)
class Read:
    """What is read of a file, how it is known, and the tokens of the longest sample."""

    amount: Amount
    how: str
    longest: int


def of_file(subject: Subject, counts: Counts, path: str | Path, reading: Reading) -> Read:
    """Find the lengths of a file's samples, or of a seeded part of them, for all.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read, or holds no sample that can be used.
    """
    samples = read_samples(path).samples
    chosen = [samples[position] for position in seeded_part(range(len(samples)), LOOKED, 0)]
    exact = subject.tokenizer is not None
    found, reason = [], "it holds none"
    for sample in chosen:
        try:
            size = subject.size(sample, reading) if exact else by_letters(sample, counts, reading)
        except ValueError as problem:
            reason = f"sample {sample.uid}: {problem}"
            continue
        found.append((*size, len(sample.images)))
    if not found:
        raise ValueError(f"{path}: no usable sample; {reason}")
    amount = Amount.of(*zip(*found, strict=True)).times(len(samples) / len(chosen))
    part = f"of {len(chosen):,} drawn samples" if len(chosen) < len(samples) else "of every sample"
    how = f"lengths {part} by " + ("its tokenizer" if exact else f"letters, {LETTERS} a token: no tokenizer is there")
    return Read(amount, how, max(tokens for tokens, _, _ in found))


def by_letters(sample: Sample, counts: Counts, reading: Reading) -> tuple[int, int]:
    """Guess the tokens of a sample, and how many of them are learnt."""
    letters = [len(turn.text) for turn in sample.turns]
    answers = sum(len(turn.text) for turn in sample.turns if turn.role == "assistant")
    tokens = sum(letters) / LETTERS + len(sample.images) * counts.places
    return min(reading.max_length, math.ceil(tokens)), max(1, math.ceil(answers / LETTERS))


def even(samples: int, tokens: int, counts: Counts) -> Read:
    """Return samples that are all alike, with an image each where the model sees."""
    text = max(1, tokens - counts.places)
    each = Amount.of([tokens], [math.ceil(SUPERVISED * text)], [1 if counts.sees else 0])
    seen = ", an image in each" if counts.sees else ""
    return Read(each.times(samples), f"{tokens} tokens in each sample{seen}, half of the text supervised", tokens)
