"""The questions of the four visual benchmarks, read from the official files.

VQAv2    questions and annotations (`v2_OpenEnded_mscoco_*_questions.json`, `v2_mscoco_*_annotations.json`)
GQA      a dictionary of questions (`testdev_balanced_questions.json`); asked are balanced ones and those they entail,
         which only the `*_all_questions.json` files hold
POPE     JSON lines (`coco_pope_{random,popular,adversarial}.json`) or a JSON list (`*_pope_seem_*.json`), one file per
         category
TextVQA  `TextVQA_0.5.1_val.json`; with a file of OCR tokens (`TextVQA_Rosetta_OCR_v0.2_val.json`) every question is
         asked twice, without them and with them, LLaVA's way

Every file is checked as a whole before a question is asked, so that no metric is taken over fewer questions than the
benchmark has.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmsel.evaluation.task import TaskFiles
from vlmsel.runs import read_json

REFERENCES = 10  # per question of VQAv2 and TextVQA
POPE_LABELS = ("yes", "no")
VQAV2_TYPES = ("yes/no", "number", "other")
PURE, OCR = "pure", "ocr"  # TextVQA's groups
OCR_ENDING = f"/{OCR}"  # of the id of a question that is asked with OCR tokens
OCR_LINE = "\nReference OCR token: "


@dataclass(frozen=True)
class Question:
    """A question about an image; `group` is what metrics are split by, `references` are the right answers.

    `record` is GQA's own, which its metrics are computed from.
    """

    id: str
    image: str
    text: str
    references: tuple[str, ...]
    group: str
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_questions(name: str, files: TaskFiles) -> list[Question]:
    """Read a benchmark's official files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be; names file and question, and how many questions have a fault.
    """
    found = READERS[name](files)
    if not found:
        raise ValueError(f"{files.paths[0]}: no question in it; is this the benchmark's official file?")
    if twice := _repeated([question.id for question in found]):
        mend = "give each category's file once" if name == "pope" else "take one of the two out"
        raise ValueError(f"{files.paths[0]}: question {twice} occurs more than once; {mend}")
    return found


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _each(records: Iterable[Any], read: Callable[[Any], Question]) -> list[Question]:
    """Read every record, so that a fault is told with how many records have one.

    Raises:
        ValueError: a record has a fault; the first is named.
    """
    found, faults = [], []
    for record in records:
        try:
            found.append(read(record))
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        more = f" ({len(faults)} of {len(faults) + len(found)} questions have a fault)" if len(faults) > 1 else ""
        raise ValueError(faults[0] + more)
    return found


def _need(record: Any, key: str, place: str, kind: type | tuple[type, ...] = str) -> Any:
    """Get a value of the right kind from a record of a file, or say what is wrong where."""
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{place}: no {key!r}; is this the benchmark's official file?")
    if not isinstance(record[key], kind) or isinstance(record[key], bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{place}: {key!r} must be {kinds}, got {str(record[key])[:40]!r}; mend it")
    return record[key]


def _one_of(value: str, allowed: Sequence[str], what: str, place: str) -> str:
    if value not in allowed:
        raise ValueError(f"{place}: {what} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {value!r}; mend it")
    return value


def _ten(answers: Sequence[Any], place: str) -> tuple[str, ...]:
    if len(answers) != REFERENCES:
        raise ValueError(
            f"{place} has {len(answers)} answers, the metric needs exactly ten; take the official file of the split"
        )
    strange = [answer for answer in answers if not isinstance(answer, str)]
    if strange:
        raise ValueError(f"{place}: an answer must be str, got {strange[0]!r}; mend it")
    return tuple(answers)


# VQAv2


def _vqav2(files: TaskFiles) -> list[Question]:
    path, annotations = files.paths[0], Path(files.annotations or "")
    content, noted = read_json(path), _annotations(annotations)
    subset = _need(content, "data_subtype", str(path))

    def read(one: Any) -> Question:
        number = str(_need(one, "question_id", str(path), (int, str)))
        place, asked = f"{annotations}: question {number}", f"{path}: question {number}"
        if number not in noted:
            raise ValueError(f"{place} of {path} has no annotation; give the annotations of the same split")
        answers = [_need(answer, "answer", place) for answer in _need(noted[number], "answers", place, list)]
        kind = _one_of(_need(noted[number], "answer_type", place), VQAV2_TYPES, "answer_type", place)
        image = f"COCO_{subset}_{_need(one, 'image_id', asked, int):012d}.jpg"
        return Question(number, image, _need(one, "question", asked), _ten(answers, place), kind)

    return _each(_need(content, "questions", str(path), list), read)


def _annotations(path: Path) -> dict[str, Any]:
    """Read VQAv2's annotations by question id."""
    noted: dict[str, Any] = {}
    for one in _need(read_json(path), "annotations", str(path), list):
        number = str(_need(one, "question_id", str(path), (int, str)))
        if number in noted:
            raise ValueError(f"{path}: question {number} is annotated more than once; take one of the two out")
        noted[number] = one
    return noted


# GQA


def _gqa(files: TaskFiles) -> list[Question]:
    path = files.paths[0]
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of questions by id, as GQA's files have")
    # read as pairs, because a dictionary keeps only the last of two questions with one id
    pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    if twice := _repeated([identity for identity, _ in pairs]):
        raise ValueError(f"{path}: question {twice} occurs more than once; take one of the two out")
    found = _each(content.items(), lambda one: _gqa_question(one[0], one[1], f"{path}: question {one[0]}"))
    balanced = [question for question in found if question.record["isBalanced"]]
    entailed = {other for question in balanced for other in question.record["entailed"]}
    return [question for question in found if question.record["isBalanced"] or question.id in entailed]


def _gqa_question(identity: str, record: Any, place: str) -> Question:
    structural = _need(_need(record, "types", place, dict), "structural", place)
    _need(record["types"], "semantic", place)
    answer, image = _need(record, "answer", place), f"{_need(record, 'imageId', place, (str, int))}.jpg"
    _need(_need(record, "groups", place, dict), "global", place, (str, type(None)))
    _need(record, "entailed", place, list)
    for step in _need(record, "semantic", place, list):
        _need(step, "operation", place)
        _need(step, "argument", place)
    if not isinstance(record.get("isBalanced"), bool):
        raise ValueError(f"{place}: 'isBalanced' must be true or false; is this the benchmark's official file?")
    group = "open" if structural == "query" else "binary"
    return Question(identity, image, _need(record, "question", place), (answer,), group, record)


# POPE


def _pope(files: TaskFiles) -> list[Question]:
    return [question for path in files.paths for question in _pope_category(path)]


def _pope_category(path: Path) -> list[Question]:
    """Read one of POPE's files; ids begin anew in each, so that the category is made a part of them."""
    category = path.stem.rpartition("_")[2]

    def read(numbered: tuple[str, Any]) -> Question:
        place, one = numbered
        label = _one_of(_need(one, "label", place), POPE_LABELS, "label", place)
        identity = f"{category}/{_need(one, 'question_id', place, (int, str))}"
        return Question(identity, _need(one, "image", place), _need(one, "text", place), (label,), category)

    return _each(_pope_records(path), read)


def _pope_records(path: Path) -> list[tuple[str, Any]]:
    """Return a file's records with their places."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\n")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a text file ({problem}); POPE's files are JSON lines") from None
    if text.startswith("[\n"):
        return [(f"{path}: entry {number}", one) for number, one in enumerate(read_json(path), start=1)]
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{path}: line {number}"
        try:
            found.append((place, json.loads(line)))
        except json.JSONDecodeError as problem:
            raise ValueError(f"{place}: not JSON ({problem}); POPE's files are JSON lines") from None
    return found


# TextVQA


def _textvqa(files: TaskFiles) -> list[Question]:
    path = files.paths[0]

    def read(one: Any) -> Question:
        identity = str(_need(one, "question_id", str(path), (int, str)))
        place = f"{path}: question {identity}"
        if "answers" not in one:
            raise ValueError(f"{place} has no answers; the test split's are not public, take the val file")
        answers = _ten(_need(one, "answers", place, list), place)
        image = f"{_need(one, 'image_id', place, (str, int))}.jpg"
        return Question(identity, image, _need(one, "question", place), answers, PURE)

    pure = _each(_need(read_json(path), "data", str(path), list), read)
    return pure if files.ocr is None else [*pure, *_with_tokens(pure, Path(files.ocr))]


def _with_tokens(questions: Sequence[Question], path: Path) -> list[Question]:
    """Return the questions once more, with the OCR tokens of their images in the prompt.

    Raises:
        ValueError: an image has no entry in the file; one without tokens has an empty list.
    """
    tokens: dict[str, list[str]] = {}
    for one in _need(read_json(path), "data", str(path), list):
        image = str(_need(one, "image_id", str(path), (str, int)))
        tokens[f"{image}.jpg"] = _need(one, "ocr_tokens", f"{path}: image {image}", list)
    lacking = [question for question in questions if question.image not in tokens]
    if lacking:
        raise ValueError(
            f"{path}: no OCR tokens for the images of {len(lacking)} of {len(questions)} questions, the first: "
            f"{lacking[0].id} ({lacking[0].image}); give the OCR file of the same split"
        )
    return [
        replace(q, id=q.id + OCR_ENDING, text=q.text + OCR_LINE + ", ".join(map(str, tokens[q.image])), group=OCR)
        for q in questions
    ]


READERS: dict[str, Callable[[TaskFiles], list[Question]]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "pope": _pope,
    "textvqa": _textvqa,
}
