"""The questions of four multiple-choice benchmarks, read from the official files or the Hugging Face form.

qasc       JSON lines `{id, question: {stem, choices: [{text, label}]}, answerKey}`; `question` may be the stem alone,
           beside `choices: {text: [...], label: [...]}`; or records `{query, cands, answer}`, answer by its text
hellaswag  JSON lines `{ind, activity_label, ctx_a, ctx_b, endings, label}`; query and endings cleaned as
           lm-evaluation-harness does. A file with `ctx` alone keeps its second sentence uncapitalised, unlike there
piqa       JSON lines `{goal, sol1, sol2}` and a file of labels, 0 or 1 a line; or `label` within the records
logiqa     text, eight lines a question: blank, letter, context, question, four options; all cleaned as
           lm-evaluation-harness does; or JSON lines `{context, query, options, correct_option}`, texts as they stand

JSON lines may also be one JSON list: the first character of a file tells which. LogiQA's letter a-d is taken as the
place of the option, as lm-evaluation-harness takes it: 19 questions of the official Test.txt list their options in the
order A, C, B, D, and for 12 of them, where the letter is b or c, the option of that letter is another one.

lm-evaluation-harness cleans HellaSwag's texts in one pass, so that four blanks leave two and a blank that a deleted
mark leaves at the end stays, and cuts the first two characters off LogiQA's options whatever they are (nearly all begin
"A."): options without a letter, in 14 of the 651 questions of the evaluation file, lose two of their own.

Where labels are not public, a test file has none (or "" or -1) and every answer is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.rows import check_whole, json_rows, need, parse_all, read_lines, read_text, readable

LETTERS = "abcd"
ITEM_LINES = 8  # of LogiQA's text files
NO_LABEL = (None, "", -1, "-1")


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with its choices; `answer` is the place of the right one from 0, None where it is not public.

    `id` is the official one, else the running number from 0; `passage` is what LogiQA's questions are about.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    passage: str = ""


def hellaswag_text(text: str) -> str:
    """Clean a context or an ending of HellaSwag.

    >>> hellaswag_text("[header] How to dry hair [title] Wet it. [step] Use a towel.")
    ' How to dry hair. Wet it. Use a towel.'
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def logiqa_text(line: str) -> str:
    """Clean a line of LogiQA that holds a context or a question."""
    return line.replace(".", ". ").strip()


def logiqa_option(line: str) -> str:
    """Clean a line of LogiQA that holds an option.

    >>> logiqa_option("A.It is 3.5 m long.")
    'It is 3. 5 m long.'
    """
    return logiqa_text(line[2:])


def read_choices(task: str, questions: str | Path, labels: str | Path | None = None) -> list[ChoiceQuestion]:
    """Read a benchmark's questions in the order of the file.

    Args:
        task: qasc, hellaswag, piqa or logiqa.
        questions: the file of questions.
        labels: PIQA's file of labels; the other tasks have none.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be, or labelled in part; names file, line and count.
    """
    if task not in READERS:
        raise ValueError(f"there is no multiple-choice task {task!r}; choose one of {', '.join(TASKS)}")
    if labels is not None and task != "piqa":
        raise ValueError(f"{labels}: {task} has its labels in the file of questions; leave the labels file out")
    path = Path(questions)
    if is_text(task, path):
        found = parse_all(path, logiqa_items(path), _logiqa_item, "question")
    else:
        found = parse_all(path, json_rows(path), lambda number, row: READERS[task](number, readable(row)), "question")
    if not found:
        raise ValueError(f"{path}: no question in it; take the benchmark's official file")
    if labels is not None:
        found = _with_labels(path, found, Path(labels))
    check_whole(path, [one.id for one in found], [one.answer for one in found], "question")
    return found


def is_text(task: str, path: Path) -> bool:
    """Tell whether a file is LogiQA's text and no JSON, which the first character that is not blank shows."""
    return task == "logiqa" and read_text(path).lstrip()[:1] not in ("[", "{")


def logiqa_items(path: Path) -> list[tuple[str, list[str]]]:
    """Cut LogiQA's text into the lines of its questions, each with its place."""
    lines = read_lines(path)
    return [(f"line {at + 1}", lines[at : at + ITEM_LINES]) for at in range(0, len(lines), ITEM_LINES)]


def _with_labels(path: Path, found: Sequence[ChoiceQuestion], labels: Path) -> list[ChoiceQuestion]:
    """Give PIQA's questions the labels of the file that goes with theirs."""
    lines = [(f"line {at}", line) for at, line in enumerate(read_lines(labels), start=1)]
    places = parse_all(labels, lines, lambda number, line: _digit(line.strip(), 2), "label")
    if len(places) != len(found):
        raise ValueError(
            f"{labels}: {len(places)} labels for the {len(found)} questions of {path}; take its own labels"
        )
    if any(one.answer is not None for one in found):
        raise ValueError(f"{path}: its records have labels of their own; leave {labels} out")
    return [replace(one, answer=place) for one, place in zip(found, places, strict=True)]


def _identity(record: Any, key: str, number: int) -> str:
    return str(need(record, key, str, int)) if isinstance(record, dict) and key in record else str(number)


def _choices(texts: Sequence[Any], count: int) -> tuple[str, ...]:
    """Check the choices of a question that must have `count` of them."""
    if len(texts) != count:
        raise ValueError(f"{len(texts)} choices, the task has {count}; mend it")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"a choice must be a text that is not empty, got {quoted(text)}; mend it")
    return tuple(texts)


def _digit(label: Any, count: int) -> int:
    """Get the place that a number, or its digits, names among `count` choices."""
    if str(label) not in map(str, range(count)):
        raise ValueError(f"the label must be a number from 0 to {count - 1}, got {quoted(label)}; mend it")
    return int(label)


def _label(record: Any, key: str, count: int) -> int | None:
    label = record.get(key)
    return None if label in NO_LABEL else _digit(label, count)


def _named(name: Any, names: Sequence[Any], what: str) -> int | None:
    """Get the place of the only choice that bears a name; None where there is no name."""
    if name in (None, ""):  # "-1" may be the text of a choice
        return None
    if names.count(name) != 1:
        raise ValueError(
            f"the answer {quoted(str(name), 40)} is {what} of {names.count(name)} choices, not of one; mend it"
        )
    return names.index(name)


def _qasc(number: int, record: Any) -> ChoiceQuestion:
    if isinstance(record, dict) and "cands" in record:
        stem, texts = need(record, "query"), need(record, "cands", list)
        answer = None if record.get("answer") is None else need(record, "answer")
        place = _named(answer, texts, "the text")
    else:
        stem, texts, letters = _qasc_parts(record)
        if len(set(map(str, letters))) < len(letters) or len(letters) != len(texts):
            raise ValueError(f"{len(texts)} choices need as many distinct labels, got {quoted(letters)}; mend it")
        place = _named(record.get("answerKey"), letters, "the label")
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} choices, a question needs two or more (QASC has 8); mend it")
    return ChoiceQuestion(_identity(record, "id", number), stem, _choices(texts, len(texts)), place)


def _qasc_parts(record: Any) -> tuple[str, list[Any], list[Any]]:
    """Get stem, texts and labels from the official form or the Hugging Face one."""
    question = need(record, "question", dict, str)
    if isinstance(question, str):
        choices = need(record, "choices", dict)
        return question, need(choices, "text", list), need(choices, "label", list)
    options = need(question, "choices", list)
    return need(question, "stem"), [need(one, "text") for one in options], [need(one, "label") for one in options]


def _hellaswag(number: int, record: Any) -> ChoiceQuestion:
    label = need(record, "activity_label")
    if "ctx_a" in record and "ctx_b" in record:
        context = f"{need(record, 'ctx_a')} {need(record, 'ctx_b').capitalize()}"
    else:
        context = need(record, "ctx")
    query = hellaswag_text(f"{label}: {context}")
    endings = _choices(need(record, "endings", list), 4)
    cleaned = _choices([hellaswag_text(ending) for ending in endings], 4)
    return ChoiceQuestion(_identity(record, "ind", number), query, cleaned, _label(record, "label", 4))


def _piqa(number: int, record: Any) -> ChoiceQuestion:
    goal, solutions = need(record, "goal"), _choices([need(record, "sol1"), need(record, "sol2")], 2)
    return ChoiceQuestion(_identity(record, "id", number), goal, solutions, _label(record, "label", 2))


def _logiqa(number: int, record: Any) -> ChoiceQuestion:
    context, query = need(record, "context"), need(record, "query")
    options, place = _choices(need(record, "options", list), 4), _label(record, "correct_option", 4)
    return ChoiceQuestion(_identity(record, "id", number), query, options, place, context)


def _logiqa_item(number: int, lines: Sequence[str]) -> ChoiceQuestion:
    if len(lines) != ITEM_LINES or lines[0].strip() or not all(line.strip() for line in lines[1:]):
        raise ValueError(
            "a question of LogiQA's text files is a blank line and seven with text: letter, context, question and four "
            "options; is a line missing?"
        )
    letter, context, question, *options = lines[1:]
    if letter.strip() not in tuple(LETTERS):
        raise ValueError(f"the answer must be a letter from a to d, got {quoted(letter, 40)}; mend it")
    choices = _choices([logiqa_option(option) for option in options], len(LETTERS))
    place = LETTERS.index(letter.strip())
    return ChoiceQuestion(str(number), logiqa_text(question), choices, place, logiqa_text(context))


READERS: dict[str, Callable[[int, Any], ChoiceQuestion]] = {
    "qasc": _qasc,
    "hellaswag": _hellaswag,
    "piqa": _piqa,
    "logiqa": _logiqa,
}
TASKS = tuple(READERS)
