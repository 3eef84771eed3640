"""Questions of one's own, for any metric: JSON or JSON lines of

    {"question": "What is it?", "answer": "a cat", "image": "cats/1.jpg", "id": "7", "group": "animals"}

with `answers`, a list, where several are right, and `choices`, a list of texts, where one of them is (`answer` is then
its text or its letter). `image`, `id` (else the place in the file) and `group` may be left out. A record of a pool,
turns of one round, is a question too, so that a target file's twin serves as it is; its options may stand in its text
as lines "A. text".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.formats import read_samples
from vlmsel.data.formats.records import CONVERSATIONS, parse_record
from vlmsel.data.rows import json_rows, need, parse_all, readable
from vlmsel.data.sample import Sample
from vlmsel.data.templates import IMAGE
from vlmsel.evaluation.asking import LETTER, SHORT
from vlmsel.evaluation.engines.base import within
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.visual.choices import LETTERS, option_of, options_in, with_options
from vlmsel.evaluation.visual.questions import REFERENCES, Question


def read_own(files: TaskFiles) -> list[Question]:
    """Read a file of questions for `files.metric`."""
    (path,), metric = files.paths, files.metric or ""
    return parse_all(path, json_rows(path), lambda at, row: _question(at, readable(row), metric), "question")


def in_own_words(path: str | Path, metric: str) -> list[Question]:
    """Read a file of samples, such as a target file, as questions that are asked as they stand there: with the request
    that a sample has itself, for the protocol `bare`.

    Raises:
        ValueError: a sample is no question of one turn, or does not suit the metric; names file and sample.
    """
    found = []
    for sample in read_samples(path).samples:
        with within(f"{path}: sample {sample.uid}"):
            question = _for_metric(_round(sample), metric)
        found.append(replace(question, text=_shown(sample.turns[0].text)))
    return found


def _question(place: int, record: Any, metric: str) -> Question:
    turns = isinstance(record, dict) and any(record.get(key) for key in (*CONVERSATIONS, "instruction"))
    return _for_metric(_round(parse_record(place, record)) if turns else _asked(place, record), metric)


def _for_metric(found: Question, metric: str) -> Question:
    """Make a question what a metric needs, or say what it lacks."""
    if metric == "choice":
        return _lettered(found)
    if metric == "vqa_accuracy" and len(found.references) != REFERENCES:
        raise ValueError(f"vqa_accuracy needs ten answers, got {len(found.references)}; or take --metric exact_match, "
                         "for which any answer is right")  # fmt: skip
    return found


def _asked(place: int, record: Any) -> Question:
    if not isinstance(record, dict) or "question" not in record:
        raise ValueError("no 'question'; a record is {\"question\": …, \"answer\": …} with \"image\" where it has one, "
                         "or turns as in a pool")  # fmt: skip
    given = need(record, "answers", list) if "answers" in record else [need(record, "answer", str, int)]
    texts = [one.get("answer") if isinstance(one, dict) else one for one in given]
    if not texts or not all(isinstance(text, str | int) for text in texts):
        raise ValueError(f"'answers' must be a list of texts, got {quoted(given, 60)}; mend it")
    choices = need(record, "choices", list) if record.get("choices") else []
    identity = str(next((record[key] for key in ("id", "question_id") if key in record), place))
    image, group = need(record, "image") if record.get("image") else "", str(record.get("group") or "")
    asked, references = need(record, "question").removeprefix(f"{IMAGE}\n"), tuple(map(str, texts))
    return Question(identity, image, asked, references, group, choices=tuple(map(str, choices)))


def _round(sample: Sample) -> Question:
    """Make a question of a pool's record."""
    if len(sample.turns) != 2 or len(sample.images) > 1:
        shape = f"{len(sample.turns)} turns and {len(sample.images)} images"
        raise ValueError(f"{shape}; a question is one turn, with one image at most, and its answer is the other")
    asked, answer = (_shown(turn.text) for turn in sample.turns)
    bare = asked.removesuffix(SHORT).removesuffix(LETTER)  # the protocol's own request, which is put there again
    return Question(str(sample.uid), (*sample.images, "")[0], bare, (answer,), sample.source)


def _shown(text: str) -> str:
    """Return a turn's text without the mark of a picture."""
    return text.replace(IMAGE, "").strip()


def _lettered(found: Question) -> Question:
    """Give a question its options and the letter of the right one."""
    asked, choices = found.text, found.choices
    if choices:
        asked = with_options(asked, choices)
    elif not (choices := options_in(asked)):
        raise ValueError(
            "no 'choices', and no options in its text as lines 'A. text'; --metric choice needs two or more"
        )
    letters = {_letter(text, choices) for text in found.references}
    if not 2 <= len(choices) <= len(LETTERS) or len(letters) != 1 or None in letters:
        raise ValueError(f"the answer {quoted(found.references[0], 40)} is not one of its {len(choices)} choices")
    return Question(found.id, found.image, asked, tuple(filter(None, letters)), found.group, choices=choices)


def _letter(answer: str, choices: Sequence[str]) -> str | None:
    """Return the letter of the choice whose text the answer is, else of the one that it names."""
    return LETTERS[choices.index(answer)] if list(choices).count(answer) == 1 else option_of(answer, choices)
