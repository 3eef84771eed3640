r"""Questions with lettered options: how they are asked, and which option an answer in words names.

MMBench (Liu et al. 2023) and ScienceQA (Lu et al. 2022) as LLaVA-1.5 asks them: the question, a line "A. text" for each
option, and a request for the letter. `letter_of` is LLaVA's reading for ScienceQA, and nothing else counts there.
`option_of` reads freer answers, in this order:

1. a letter that begins the answer, as in "b", "(B)", "B. a cat", or follows "answer is";
2. the text of one option, whatever its case and final period;
3. the only option whose words stand in the answer.

What differs from MMBench's own script: no language model is asked about what fits none of these; it is wrong, and
counted. In circular evaluation (MMBench) a question is right if it is in every rotation of its options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase as LETTERS

from vlmsel.evaluation.visual.gqa import gqa_answer

MARK = 10**6  # index + k · MARK is MMBench's k-th rotation of a question
_BEGINS = re.compile(r"[(\[]?([A-Z])(?:[.):,\]]|\Z)", re.IGNORECASE)
_SAYS = re.compile(r"answer is:?\s*[(\[]?([A-Z])(?:[.):,\]]|\s*\Z)")
_LINE = re.compile(r"^\(?([A-Z])[.)] *(.+)$", re.MULTILINE)


def with_options(question: str, options: Sequence[str]) -> str:
    r"""Put options behind a question.

    >>> with_options("Which?", ["red", "blue"])
    'Which?\nA. red\nB. blue'
    """
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))])


def options_in(text: str) -> tuple[str, ...]:
    r"""Return the options that stand in a question as lines, in the order of their letters.

    >>> options_in("Which?\nA. red\nB. blue\nAnswer with the option's letter.")
    ('red', 'blue')
    """
    found = _LINE.findall(text)
    right = [letter for letter, _ in found] == list(LETTERS[: len(found)])
    return tuple(option.strip() for _, option in found) if right else ()


def letter_of(text: str, options: Sequence[str]) -> str | None:
    """Return the letter that an answer gives in one of the ways that LLaVA's script of ScienceQA reads.

    >>> letter_of("B. a cat", "ab"), letter_of("The answer is A.", "ab"), letter_of("(B)", "ab"), letter_of("C", "ab")
    ('B', 'A', None, None)
    """
    text = text.replace("\n", ". ")
    if text.strip() in set("ABCDE"):
        found = text.strip()
    elif re.match(r"[A-E]\. ", text):
        found = text[0]
    else:
        said = re.search(r"The answer is ([A-E])\.", text) or re.search("The answer is ([A-E])", text)
        found = said[1] if said else ""
    return found if found and found in LETTERS[: len(options)] else None


def option_of(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that an answer names, None where it fits none or several.

    >>> option_of("(b) a cat", ["a dog", "a cat"]), option_of("It is a dog.", ["a dog", "a cat"]), option_of("?", ["a"])
    ('B', 'A', None)
    """
    said = _BEGINS.match(text.strip()) or _SAYS.search(text)
    if said and said[1].upper() in LETTERS[: len(options)]:
        return said[1].upper()
    plain = [gqa_answer(option) for option in options]
    places = [place for place, option in enumerate(plain) if option == gqa_answer(text)]
    if not places:
        words = _words(text)
        places = [place for place, option in enumerate(plain) if _words(option).strip() and _words(option) in words]
    return LETTERS[places[0]] if len(places) == 1 else None


def _words(text: str) -> str:
    return " ".join(["", *re.findall(r"[^\W_]+", text.lower()), ""])


def circular(right: Mapping[str, bool]) -> dict[str, bool]:
    """Tell by the index of each question, as a text, whether it is right in all of its rotations.

    >>> circular({"7": True, "1000007": False, "8": True, "1000008": True})
    {'7': False, '8': True}
    """
    whole: dict[str, bool] = {}
    for index, one in right.items():
        base = base_of(index)
        whole[base] = whole.get(base, True) and one
    return whole


def base_of(index: str) -> str:
    """Return the index of the question that one is a rotation of, itself where it is none."""
    return str(int(index) % MARK)
