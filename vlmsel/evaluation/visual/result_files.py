"""Files of answers in the formats of the official servers and scripts, written; `answer_files` reads them.

VQAv2    a JSON list of {"question_id": int, "answer"}; the server wants every question of the split
GQA      a JSON list of {"questionId": str, "prediction"}; the script compares predictions as they stand
POPE     JSON lines {"question", "answer"}, a file per category; the script matches them to the questions by position
TextVQA  a JSON list of {"question_id": int, "answer"}; one file for questions without OCR tokens, one for those with

What differs from LLaVA's converters: VQAv2 answers are written as the model gave them, whereas LLaVA applies TextVQA's
rules first, which can lose points ("red,white" becomes "redwhite"); a question without an answer is an error, whereas
LLaVA submits "" for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmsel.data.rows import parse_all
from vlmsel.evaluation.metrics import require_answers
from vlmsel.evaluation.visual.gqa import gqa_answer
from vlmsel.evaluation.visual.questions import OCR_ENDING, Question
from vlmsel.runs import write_text

Pairs = list[tuple[Question, str]]


def write_results(task: str, questions: Sequence[Question], answers: Mapping[str, str], folder: Path) -> list[Path]:
    """Write a task's official files into a run folder and return their paths.

    `vqav2_results.json`, `gqa_results.json`, `pope_<category>_results.json`, `textvqa_{pure,ocr}_results.json`, in the
    order of the questions.

    Raises:
        ValueError: a question has no answer in words, or an id does not fit.
    """
    words = {identity for identity, text in answers.items() if isinstance(text, str)}
    require_answers([question.id for question in questions], words, "questions have no answer in words")
    parts: dict[Path, Pairs] = {}
    for question in questions:
        name = f"{task}_{question.group}" if task in ("pope", "textvqa") else task
        parts.setdefault(folder / f"{name}_results.json", []).append((question, answers[question.id]))
    contents = {path: _content(task, pairs, path) for path, pairs in parts.items()}
    for path, content in contents.items():
        write_text(path, content)
    return list(parts)


def _content(task: str, pairs: Pairs, path: Path) -> str:
    """Return what a file holds, in ASCII, an entry a line: the scripts open files in the system's encoding."""
    if task == "pope":
        return "".join(json.dumps({"question": q.text, "answer": text}) + "\n" for q, text in pairs)
    entries: list[dict[str, Any]]
    if task == "gqa":  # whose script only compares
        entries = [{"questionId": q.id, "prediction": gqa_answer(text)} for q, text in pairs]
    else:
        rows = [(f"question {q.id}", {"question_id": q.id.removesuffix(OCR_ENDING), "answer": a}) for q, a in pairs]
        entries = parse_all(path, rows, lambda _, entry: _numbered(entry), "question")
    return "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n"


def _numbered(entry: dict[str, Any]) -> dict[str, Any]:
    """Give an entry the id by which the server knows its question."""
    if not re.fullmatch("0|[1-9][0-9]*", entry["question_id"]):
        raise ValueError("its id is no whole number; the server takes the ids of the official files only")
    return entry | {"question_id": int(entry["question_id"])}
