"""Samples of a pool that an evaluation asks about: the same question about the same picture, or the same long text.

Evaluation files are those of benchmarks, whatever their shape: every object in a JSON or JSON-lines file that has a
question is one. Pictures are compared by name, those that end in a long number (COCO, Visual Genome) by the number, and
those of short names, which many folders have, by their whole path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vlmsel.data.duplicates import plain_text
from vlmsel.data.rows import json_rows
from vlmsel.data.sample import Sample
from vlmsel.runs import read_json

QUESTIONS = ("question", "sent1", "text", "goal", "ctx", "value")
PICTURES = ("image", "imageId", "image_id", "flickr_id")
SHORT = 6  # characters of a name from which on it is a picture's own
WORDS = 6  # of a text without picture from which on it is no chance that both have it


def picture_key(name: Any) -> str:
    """Return what a picture is known by.

    >>> picture_key("coco/train2017/000000033471.jpg"), picture_key(33471), picture_key("a/Chart1.png")
    ('33471', '33471', 'chart1')
    """
    stem = PurePosixPath(str(name)).stem.lower()
    number = re.search(r"\d{6,}$", stem)
    if number:
        return str(int(number[0]))
    return stem if len(stem) >= SHORT else str(name).lower()


def asked(path: str | Path) -> set[tuple[str, str]]:
    """Return the questions of an evaluation file: picture, "" for none, and plain text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or has no question.
    """
    try:
        content = read_json(path)
    except ValueError:
        content = [row for _, row in json_rows(path)]
    found = set(_questions(content, ""))
    if not found:
        raise ValueError(f"{path}: no questions found in it (an object with one of {', '.join(QUESTIONS)})")
    return found


def _questions(content: Any, picture: str) -> Iterator[tuple[str, str]]:
    if isinstance(content, list):
        for one in content:
            yield from _questions(one, picture)
    elif isinstance(content, dict):
        named = next((content[key] for key in PICTURES if isinstance(content.get(key), str | int)), None)
        picture = picture if named is None else picture_key(named)
        for key in QUESTIONS:
            if isinstance(content.get(key), str) and content.get("from") != "gpt":
                yield picture, plain_text(content[key])
        for one in content.values():
            yield from _questions(one, picture)


def contaminated(samples: Sequence[Sample], questions: set[tuple[str, str]]) -> list[int]:
    """Return the uids of samples that hold one of the questions about the same picture, or a long one without any."""
    found = []
    for sample in samples:
        pictures = [picture_key(image) for image in sample.images] or [""]
        texts = [plain_text(line) for turn in sample.said("human") for line in (turn, *turn.splitlines())]
        if any((picture, text) in questions and (picture or len(text.split()) >= WORDS)
               for picture in pictures for text in texts):  # fmt: skip
            found.append(sample.uid)
    return found
