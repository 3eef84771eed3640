"""ScienceQA's files: `problems.json`, questions by id, and `pid_splits.json`, which says whose ids are the test split.

The image folder is `images/test`, where a question's picture is `<id>/image.png`; about half of the questions have none
and are asked as text. Prompts are worded as lmms-eval has them: "Context: hint", the question, the options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmsel.data.rows import need, parse_all
from vlmsel.evaluation.engines.base import within
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.visual.choices import LETTERS, with_options
from vlmsel.evaluation.visual.questions import Question
from vlmsel.runs import read_json

SPLIT = "test"


def read_scienceqa(files: TaskFiles) -> list[Question]:
    """Read the test split; `group` is a question's subject."""
    (path,), splits = files.paths, Path(files.annotations or "")
    problems = read_json(path)
    with within(str(splits)):
        ids = need(read_json(splits), SPLIT, list)
    if not isinstance(problems, dict):
        raise ValueError(f"{path}: expected a dictionary of questions by id; is this ScienceQA's problems.json?")
    rows = [(f"question {identity}", (str(identity), problems.get(str(identity)))) for identity in ids]
    return parse_all(path, rows, lambda _, row: _question(*row), "question")


def _question(identity: str, problem: Any) -> Question:
    if problem is None:
        raise ValueError("it is of the split and not in the file; take both files of one release")
    choices, place = need(problem, "choices", list), need(problem, "answer", int)
    if not 2 <= len(choices) <= len(LETTERS) or not all(isinstance(text, str) for text in choices):
        raise ValueError(f"choices must be two texts or more, got {len(choices)}; mend it")
    if not 0 <= place < len(choices):
        raise ValueError(f"answer {place} is the place of none of its {len(choices)} choices; mend it")
    hint, asked = problem.get("hint") or "", need(problem, "question")
    text = with_options(f"Context: {hint}\n{asked}" if hint else asked, choices)
    image = f"{identity}/{need(problem, 'image')}" if problem.get("image") else ""
    subject = problem.get("subject") or ""
    return Question(identity, image, text, (LETTERS[place],), subject, choices=tuple(choices))
