"""Files of answers, read: which shapes there are, and which question each entry answers.

A file is a JSON list or JSON lines; its entries are objects with the keys of one shape, and may have more. Beside the
official files (see `result_files`) these are our `predictions.jsonl`, {"question_id", "prompt", "text"}, and LLaVA's
answer files, which have the same keys and more; in LLaVA's file of TextVQA `question_id` is the image's, so that the
question is found by its prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.rows import json_rows, parse_all, readable
from vlmsel.evaluation.metrics import require_answers
from vlmsel.evaluation.visual.answers import has_ocr_tokens, textvqa_prompt_question
from vlmsel.evaluation.visual.questions import OCR, OCR_ENDING, PURE, Question

Shape = tuple[str, ...]  # an entry's keys: what names the question, ..., the answer
SERVER: Shape = ("question_id", "answer")
GQA: Shape = ("questionId", "prediction")
POPE: Shape = ("question", "answer")
LINES: Shape = ("question_id", "prompt", "text")
SHAPES = {"vqav2": (SERVER, LINES), "gqa": (GQA, LINES), "pope": (POPE, LINES), "textvqa": (SERVER, LINES)}


@dataclass(frozen=True)
class Entry:
    """One answer in a file: its place, what names its question, the prompt where the shape has one, and its text."""

    place: str
    name: str
    text: str
    prompt: str


@dataclass(frozen=True)
class AnswerFile:
    """A file's entries, all of one shape."""

    path: Path
    shape: Shape
    entries: Sequence[Entry]


def read_file(path: Path, shapes: Sequence[Shape]) -> AnswerFile:
    """Read a file whose entries all have the same one of the shapes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or not JSON, or an entry has another shape or an answer that is no text; says how many.
    """
    rows = list(json_rows(path))
    fitting = {shape: sum(_fits(row, shape) for _, row in rows) for shape in shapes}
    shape = max(shapes, key=lambda one: fitting[one])
    wanted = " or ".join(map(_shown, [shape] if fitting[shape] else shapes))

    def entry(number: int, row: Any) -> Entry:
        if not _fits(readable(row), shape):
            raise ValueError(f"not {wanted}; take these keys")
        name, *prompt, text = (row[key] for key in shape)
        if not isinstance(text, str):
            raise ValueError(f"an answer ({shape[-1]!r}) that is no text; put it in quotes or ask again")
        return Entry(rows[number][0], str(name), text, "".join(prompt))

    return AnswerFile(path, shape, parse_all(path, rows, entry, "answer"))


def _shown(shape: Shape) -> str:
    return "{" + ", ".join(f'"{key}"' for key in shape) + "}"


def _fits(row: Any, shape: Shape) -> bool:
    """Tell whether an entry has the keys, names a question by text or number, and has text in between."""
    if not isinstance(row, dict) or not set(shape) <= set(row):
        return False
    name = row[shape[0]]
    named = isinstance(name, int | str) and not isinstance(name, bool)
    return named and all(isinstance(row[key], str) for key in shape[1:-1])


# The answers of a task


def read_results(task: str, paths: Sequence[Path], questions: Sequence[Question]) -> dict[str, str]:
    """Read the answers to all of a task's questions, by question id, in the order of the questions.

    Files may be official ones, `predictions.jsonl` or LLaVA's; POPE's category and whether a TextVQA file has answers
    to questions with OCR tokens is told by the file's name, else by the questions. Several files are taken together.
    GQA's script compares texts as they stand and `gqa_match` strips them: the answer "yes ." is written as "yes ",
    which is wrong for the script, as "yes ." is for `gqa_match`, but "yes " is right for it when it is read again.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not of a known shape, has answers to other questions or two to one question, or some
            questions have none; says how many.
    """
    files = [read_file(Path(path), SHAPES.get(task, (SERVER, LINES))) for path in paths]
    pairs = [pair for file in files if file.entries for pair in _pairs(task, file, questions)]
    return _complete(pairs, ", ".join(map(str, paths)) or "no file", questions)


def _complete(pairs: Sequence[tuple[str, str]], where: str, questions: Sequence[Question]) -> dict[str, str]:
    answers = dict(reversed(pairs))  # the first to each question
    if others := [(identity, text) for identity, text in pairs if text != answers[identity]]:
        first, other = others[0]
        raise ValueError(
            f"{len(dict(others))} of {len(questions)} questions have different answers in {where}, the first: "
            f"{first} ({quoted(answers[first], 40)} and {quoted(other, 40)}); keep one answer to each"
        )
    mend = "; give the answers of a finished run to all questions"
    require_answers([question.id for question in questions], answers, f"questions have no answer in {where}", mend)
    return {question.id: answers[question.id] for question in questions}


# Which question an entry answers


def _pairs(task: str, file: AnswerFile, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Return (question id, answer) for every entry."""
    if file.shape == POPE:
        return _pope_pairs(file, questions)
    known = {question.id: [question.id] for question in questions}
    names, mend = [entry.name for entry in file.entries], "is it of another split?"
    if task == "pope" and all(name.isdecimal() for name in names):
        mend = "LLaVA numbers POPE's questions over all categories; give POPE's own format, a file per category"
    if task == "textvqa" and file.shape == SERVER:
        ending = _ocr_ending(file, questions)
        names = [name + ending for name in names]
    elif task == "textvqa" and _has_image_ids(names, known, questions):
        known, names = _by_prompt(questions), _prompts(file)
    if strange := [name for name in names if name not in known]:
        raise ValueError(
            f"{len(strange)} of {len(names)} answers in {file.path} are to questions that the questions given do not "
            f"have, the first: {' '.join(strange[0].split())[:200]}; {mend}"
        )
    return [(one, entry.text) for name, entry in zip(names, file.entries, strict=True) for one in known[name]]


def _words_of(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


def _ocr_ending(file: AnswerFile, questions: Sequence[Question]) -> str:
    """Tell from a file's name, else from the questions, whether its answers are to questions with OCR tokens."""
    named = {PURE, OCR} & set(_words_of(file.path.stem))
    kinds = named or {question.group for question in questions}
    if len(kinds) > 1:
        raise ValueError(
            f"{file.path}: are its answers to questions with OCR tokens? name it textvqa_ocr_results.json, "
            "or textvqa_pure_results.json for those without"
        )
    return OCR_ENDING if kinds == {OCR} else ""


def _has_image_ids(names: Sequence[str], known: Mapping[str, Any], questions: Sequence[Question]) -> bool:
    images = {question.image for question in questions}
    return not any(name in known for name in names) and any(f"{name}.jpg" in images for name in names)


def _by_prompt(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Return the ids of the questions which one entry of LLaVA's TextVQA file answers: the same asked of an image."""
    found: dict[str, list[str]] = {}
    for question in questions:
        asked = textvqa_prompt_question(question.text + "\n")  # the text may have a line of OCR tokens
        found.setdefault(_prompt_name(question.image, asked, question.group == OCR), []).append(question.id)
    return found


def _prompts(file: AnswerFile) -> list[str]:
    """Return the names under which `_by_prompt` has LLaVA's entries."""

    def name(_: int, entry: Entry) -> str:
        return _prompt_name(f"{entry.name}.jpg", textvqa_prompt_question(entry.prompt), has_ocr_tokens(entry.prompt))

    return parse_all(file.path, [(entry.place, entry) for entry in file.entries], name, "answer")


def _prompt_name(image: str, asked: str, ocr: bool) -> str:
    return f"{' '.join(asked.split())!r} of image {image} {'with' if ocr else 'without'} OCR tokens"


def _pope_pairs(file: AnswerFile, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Match a category's answers by position, as the script does, and check that they are to these questions."""
    own = _category(file, questions)
    pairs = list(zip(file.entries, own, strict=False))
    if wrong := [(entry, question) for entry, question in pairs if not _asks(entry, question)]:
        entry, question = wrong[0]
        raise ValueError(
            f"{len(wrong)} of {len(file.entries)} answers in {file.path} are not to the question at their place, the "
            f"first: {entry.place} is to {quoted(entry.name)}, {question.id} is {quoted(question.text)}; answers must "
            "stand in the order of the category's questions"
        )
    if (more := len(file.entries) - len(own)) > 0:
        raise ValueError(
            f"{more} of {len(file.entries)} answers in {file.path} are to questions that the questions given do not "
            f"have, for category {own[0].group} has {len(own)}; is it of another split?"
        )
    return [(question.id, entry.text) for entry, question in pairs]


def _category(file: AnswerFile, questions: Sequence[Question]) -> list[Question]:
    """Tell a file's category by its name, else by being the only one whose questions it answers one by one."""
    names = dict.fromkeys(question.group for question in questions)
    groups = {name: [question for question in questions if question.group == name] for name in names}
    stem = _words_of(file.path.stem)
    found = [name for name in groups if set(_words_of(name)) <= set(stem)] or list(groups)
    if len(found) > 1:
        same = [name for name in found if len(groups[name]) == len(file.entries)]
        found = [name for name in same if all(map(_asks, file.entries, groups[name]))]
    if len(found) != 1:
        sizes = ", ".join(f"{name} ({len(own)} questions)" for name, own in groups.items())
        raise ValueError(
            f"{file.path}: which category are its {len(file.entries)} answers to? give a file for each and name it "
            f"pope_<category>_results.json; there are {sizes}"
        )
    return groups[found[0]]


def _asks(entry: Entry, question: Question) -> bool:
    """Tell whether an entry answers a question; a prompt may go on after it."""
    return entry.name.strip().lower().startswith(question.text.strip().lower())
