"""Make more sentences of the ten transformations in DataInf's identification study, for a model to learn them from.

    python tools/identification_sentences.py grammars_train.json --count 100000 --seed 0 --out sentences.json

900 samples are few for a tiny model, which learns them by heart instead of learning to copy. The sentences are 3 to 5
words, half of them drawn from the training file and half made up, so that hardly any comes twice. Prompts are those of
the training file, but for the transformation's name, which is "Operation 0" to "Operation 9", and the chatbot's, which
is made up anew: a model that learnt these can do all ten and knows none by the names that the study uses (--names keeps
them). It is checked that every
transformation gives the training file's own answers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmsel.data.formats import read_samples, write_records
from vlmsel.data.sample import Sample

VOWELS = frozenset("aeiouAEIOU")
ARROW = "->"


def is_consonant(letter: str) -> bool:
    """Tell whether a character is a letter but no vowel."""
    return letter.isalpha() and letter not in VOWELS


def each_word(change: Callable[[str], str]) -> Callable[[str], str]:
    """Return what changes every word of a sentence."""
    return lambda sentence: " ".join(map(change, sentence.split()))


TRANSFORMATIONS: dict[str, Callable[[str], str]] = {
    "Reverse Order of Words": lambda text: " ".join(reversed(text.split())),
    "Capitalize Every Other Letter": lambda text: "".join(
        letter.upper() if place % 2 else letter.lower() for place, letter in enumerate(text)
    ),
    "Insert Number 1 Between Every Word": lambda text: " 1 ".join(text.split()),
    "Replace Vowels with *": lambda text: "".join("*" if letter in VOWELS else letter for letter in text),
    "Double Every Consonant": lambda text: "".join(2 * letter if is_consonant(letter) else letter for letter in text),
    "Capitalize Every Word": each_word(lambda word: word[:1].upper() + word[1:]),
    "Remove All Vowels": lambda text: "".join(letter for letter in text if letter not in VOWELS),
    "Add 'ly' To End of Each Word": each_word(lambda word: f"{word}ly"),
    "Remove All Consonants": lambda text: "".join(letter for letter in text if not is_consonant(letter)),
    "Repeat Each Word Twice": each_word(lambda word: f"{word} {word}"),
}


def parts(sample: Sample) -> tuple[str, str]:
    """Return the prompt up to the sentence, and the sentence.

    Raises:
        ValueError: the sample is not of the study, or its answer is not its transformation's.
    """
    question, answer = (turn.text for turn in sample.turns)
    head, _, last = question.rpartition("\n")
    sentence = last.strip().removesuffix(ARROW).strip()
    if sample.source not in TRANSFORMATIONS:
        raise ValueError(f"sample {sample.uid}: no transformation is called {sample.source!r}")
    if TRANSFORMATIONS[sample.source](sentence) != answer:
        raise ValueError(f"sample {sample.uid}: {answer!r} is not {sample.source!r} of {sentence!r}")
    return head, sentence


def made_up(rng: random.Random) -> str:
    """Draw a word of one to three syllables."""
    ends = ("", "n", "s", "r", "t", "l")
    syllables = (rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
    return "".join(syllables) + rng.choice(ends)


def sentences(samples: list[Sample], count: int, seed: int, names: bool = False) -> list[dict[str, Any]]:
    """Draw records in LLaVA's format; with `names` the transformations keep theirs."""
    found = [(sample.source, *parts(sample)) for sample in samples]
    heads = {kind: head for kind, head, _ in found}
    if not names:
        heads = {kind: heads[kind].replace(kind, f"Operation {n}") for n, kind in enumerate(sorted(heads))}
    words = sorted({word.strip(".").lower() for _, _, sentence in found for word in sentence.split()})
    rng, kinds, records = random.Random(seed), sorted(heads), []
    for number in range(count):
        kind = rng.choice(kinds)
        chosen = (rng.choice(words) if rng.random() < 0.5 else made_up(rng) for _ in range(rng.randint(3, 5)))
        text = " ".join(chosen).capitalize() + "."
        head = heads[kind] if names else f"{made_up(rng)} {heads[kind].partition(' ')[2]}"
        turns = [
            {"from": "human", "value": f"{head}\n    {text} {ARROW}"},
            {"from": "gpt", "value": TRANSFORMATIONS[kind](text)},
        ]
        records.append({"id": f"sentence_{number}", "source": kind, "conversations": turns})
    return records


def main() -> None:
    """Write the sentences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("--count", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--names", action="store_true", help="keep the transformations' names")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        records = sentences(read_samples(args.train).samples, args.count, args.seed, args.names)
    except (ValueError, OSError) as problem:
        parser.error(f"{args.train}: {problem}")
    write_records(args.out, records)
    print(f"{args.out}: {len(records)} sentences of {len({record['source'] for record in records})} classes")


if __name__ == "__main__":
    main()
