"""Files of answers, read: which shapes there are, and which question each entry answers.

A file is a JSON list or JSON lines; its entries are objects with the keys of one shape, and may have more. Beside the
official files (see `result_files`) these are our `predictions.jsonl`, {"question_id", "prompt", "text"}, and LLaVA's
answer files, which have the same keys and more; in LLaVA's file of TextVQA `question_id` is the image's, so that the
question is found by its prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vlmsel.evaluation.visual.answers import has_ocr_tokens, textvqa_prompt_question
from vlmsel.evaluation.visual.questions import OCR, OCR_ENDING, PURE, Question
from vlmsel.runs import read_json

Shape = tuple[str, ...]  # an entry's keys: what names the question, ..., the answer
SERVER: Shape = ("question_id", "answer")
GQA: Shape = ("questionId", "prediction")
POPE: Shape = ("question", "answer")
LINES: Shape = ("question_id", "prompt", "text")
SHAPES = {"vqav2": (SERVER, LINES), "gqa": (GQA, LINES), "pope": (POPE, LINES), "textvqa": (SERVER, LINES)}
_CONTAINERS = "a file of answers is a JSON list, or has one JSON object a line"


def shapes_of(task: str) -> tuple[Shape, ...]:
    """Return the shapes that a task's answers come in, the official one first.

    Raises:
        ValueError: the task has no official format.
    """
    if task not in SHAPES:
        raise ValueError(f"{task!r} has no official file of results; there are {', '.join(SHAPES)}")
    return SHAPES[task]


@dataclass(frozen=True)
class AnswerFile:
    """A file's entries, all of one shape and with an answer in words; `unit` is what an entry is called."""

    path: Path
    unit: str
    shape: Shape
    entries: Sequence[Mapping[str, Any]]

    @property
    def texts(self) -> list[str]:
        """The answers."""
        return [entry[self.shape[-1]] for entry in self.entries]

    @property
    def names(self) -> list[str]:
        """What names each entry's question."""
        return [str(entry[self.shape[0]]) for entry in self.entries]


def read_file(path: Path, shapes: Sequence[Shape]) -> AnswerFile:
    """Read a file whose entries all have the same one of the shapes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or an entry has another shape or an answer that is no text; says how many.
    """
    unit, entries = _entries(path)
    fitting = {shape: [_fits(entry, shape) for entry in entries] for shape in shapes}
    shape = max(shapes, key=lambda one: sum(fitting[one]))
    if not all(fitting[shape]):
        wanted = [shape] if any(fitting[shape]) else shapes
        refuse(fitting[shape], path, unit, f"are not {' or '.join(map(_shown, wanted))}", "take these keys")
    texts = [isinstance(entry[shape[-1]], str) for entry in entries]
    if not all(texts):
        refuse(texts, path, unit, f"have an answer ({shape[-1]!r}) that is no text", "put it in quotes or ask again")
    return AnswerFile(path, unit, shape, entries)


def refuse(good: Sequence[bool], path: Path, unit: str, fault: str, mend: str) -> NoReturn:
    """Say how many entries of a file have a fault, and which is the first."""
    units = {"line": "lines", "entry": "entries"}[unit]
    first = good.index(False) + 1
    raise ValueError(f"{good.count(False)} of {len(good)} {units} in {path} {fault}, the first: {unit} {first}; {mend}")


def _shown(shape: Shape) -> str:
    return "{" + ", ".join(f'"{key}"' for key in shape) + "}"


def _fits(entry: Any, shape: Shape) -> bool:
    """Tell whether an entry has the keys, names a question by text or number, and has text in between."""
    if not isinstance(entry, dict) or not set(shape) <= set(entry):
        return False
    name = entry[shape[0]]
    named = isinstance(name, int | str) and not isinstance(name, bool)
    return named and all(isinstance(entry[key], str) for key in shape[1:-1])


def _entries(path: Path) -> tuple[str, list[Any]]:
    """Return what an entry is called, and the entries of a JSON list or of JSON lines."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a text file ({problem}); {_CONTAINERS}") from None
    if text.startswith("["):
        return "entry", read_json(path)
    lines = [_parsed(line) for line in text.split("\n")] if text else []
    if None in lines:
        refuse([line is not None for line in lines], path, "line", "are not JSON", _CONTAINERS)
    return "line", lines


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


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
    shapes = shapes_of(task)
    files = [read_file(Path(path), shapes) for path in paths]
    pairs = [pair for file in files if file.entries for pair in _pairs(task, file, questions)]
    return _complete(pairs, ", ".join(map(str, paths)) or "no file", questions)


def _complete(pairs: Sequence[tuple[str, str]], where: str, questions: Sequence[Question]) -> dict[str, str]:
    answers: dict[str, str] = {}
    others: dict[str, str] = {}
    for identity, text in pairs:
        if answers.setdefault(identity, text) != text:
            others.setdefault(identity, text)
    if others:
        first = next(iter(others))
        raise ValueError(
            f"{len(others)} of {len(questions)} questions have different answers in {where}, the first: "
            f"{first} ({answers[first][:40]!r} and {others[first][:40]!r}); keep one answer to each"
        )
    if lacking := [question.id for question in questions if question.id not in answers]:
        raise ValueError(
            f"{len(lacking)} of {len(questions)} questions have no answer in {where}, the first: {lacking[0]}; "
            "give the answers of a finished run to all questions"
        )
    return {question.id: answers[question.id] for question in questions}


# Which question an entry answers


def _pairs(task: str, file: AnswerFile, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Return (question id, answer) for every entry."""
    if file.shape == POPE:
        return _pope_pairs(file, questions)
    known = {question.id: [question.id] for question in questions}
    names, mend = file.names, "is it of another split?"
    if task == "pope" and all(name.isdecimal() for name in names):
        mend = "LLaVA numbers POPE's questions over all categories; give POPE's own format, a file per category"
    if task == "textvqa" and file.shape == SERVER:
        ending = _ocr_ending(file, questions)
        names = [name + ending for name in names]
    elif task == "textvqa" and _has_image_ids(file, known, questions):
        known, names = _by_prompt(questions), _prompts(file)
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(names)} answers in {file.path} are to questions that the questions given do not "
            f"have, the first: {' '.join(strange[0].split())}; {mend}"
        )
    return [(identity, text) for name, text in zip(names, file.texts, strict=True) for identity in known[name]]


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


def _has_image_ids(file: AnswerFile, known: Mapping[str, Any], questions: Sequence[Question]) -> bool:
    images = {question.image for question in questions}
    return not any(name in known for name in file.names) and any(f"{name}.jpg" in images for name in file.names)


def _by_prompt(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Return the ids of the questions which one entry of LLaVA's TextVQA file answers: the same asked of an image."""
    found: dict[str, list[str]] = {}
    for question in questions:
        asked = textvqa_prompt_question(question.text + "\n")  # the text may have a line of OCR tokens
        found.setdefault(_prompt_name(question.image, asked, question.group == OCR), []).append(question.id)
    return found


def _prompts(file: AnswerFile) -> list[str]:
    """Return the names under which `_by_prompt` has LLaVA's entries."""
    names = []
    for name, prompt in zip(file.names, (entry["prompt"] for entry in file.entries), strict=True):
        try:
            names.append(_prompt_name(f"{name}.jpg", textvqa_prompt_question(prompt), has_ocr_tokens(prompt)))
        except ValueError:
            names.append("")
    if "" in names:
        refuse([name != "" for name in names], file.path, file.unit, "have no question in the prompt", "mend them")
    return names


def _prompt_name(image: str, asked: str, ocr: bool) -> str:
    return f"{' '.join(asked.split())!r} of image {image} {'with' if ocr else 'without'} OCR tokens"


def _pope_pairs(file: AnswerFile, questions: Sequence[Question]) -> list[tuple[str, str]]:
    """Match a category's answers by position, as the script does, and check that they are to these questions."""
    category = _pope_category(file, questions)
    own = [question for question in questions if question.group == category]
    good = _in_order(file, own)
    if not all(good):
        place = good.index(False)
        raise ValueError(
            f"{good.count(False)} of {len(file.entries)} answers in {file.path} are not to the question at their "
            f"place, the first: {file.unit} {place + 1} is to {file.names[place][:80]!r}, {own[place].id} is "
            f"{own[place].text!r}; answers must stand in the order of the category's questions"
        )
    if (more := len(file.entries) - len(own)) > 0:
        raise ValueError(
            f"{more} of {len(file.entries)} answers in {file.path} are to questions that the questions given do not "
            f"have, for category {category} has {len(own)}; is it of another split?"
        )
    return [(question.id, text) for question, text in zip(own, file.texts, strict=False)]


def _pope_category(file: AnswerFile, questions: Sequence[Question]) -> str:
    """Tell a file's category by its name, else by being the only one whose questions it answers one by one."""
    groups: dict[str, list[Question]] = {}
    for question in questions:
        groups.setdefault(question.group, []).append(question)
    stem = _words_of(file.path.stem)
    found = [name for name in groups if set(_words_of(name)) <= set(stem)] or list(groups)
    if len(found) > 1:
        same = [name for name in found if len(groups[name]) == len(file.entries)]
        found = [name for name in same if all(_in_order(file, groups[name]))]
    if len(found) != 1:
        sizes = ", ".join(f"{name} ({len(own)} questions)" for name, own in groups.items())
        raise ValueError(
            f"{file.path}: which category are its {len(file.entries)} answers to? give a file for each and name it "
            f"pope_<category>_results.json; there are {sizes}"
        )
    return found[0]


def _in_order(file: AnswerFile, questions: Sequence[Question]) -> list[bool]:
    """Tell for each entry whether it answers the question at its place; a prompt may go on after the question."""
    pairs = zip(file.names, questions, strict=False)
    return [name.strip().lower().startswith(question.text.strip().lower()) for name, question in pairs]
