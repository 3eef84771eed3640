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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmsel.checks import quoted
from vlmsel.data.rows import Rows, check_ids, json_rows, need, parse_all, readable
from vlmsel.evaluation.engines.base import within
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

    `image` is "" where there is none; `choices` are the texts of lettered options; `record` is GQA's own, which its
    metrics are computed from.
    """

    id: str
    image: str
    text: str
    references: tuple[str, ...]
    group: str
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    choices: tuple[str, ...] = ()


def read_questions(
    name: str, files: TaskFiles, read: Callable[[TaskFiles], list[Question]] | None = None
) -> list[Question]:
    """Read a benchmark's official files, by `read` where it is none of the four here.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be; names file and question, and how many questions have a fault.
    """
    found = (read or READERS[name])(files)
    if not found:
        raise ValueError(f"{files.paths[0]}: no question in it; is this the benchmark's official file?")
    check_ids(files.paths[0], [question.id for question in found], "question")
    return found


def _records(path: Path, content: Any, key: str, noun: str = "question") -> Rows:
    """Return the records of the list that a file has under a key, each with the question that it is about."""
    with within(str(path)):
        return [(f"{noun} {need(one, f'{noun}_id', int, str)}", one) for one in need(content, key, list)]


def _one_of(allowed: Sequence[str], record: Any, key: str) -> str:
    if (value := need(record, key)) not in allowed:
        raise ValueError(f"{key} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {quoted(value)}; mend it")
    return value


def _ten(answers: Sequence[Any]) -> tuple[str, ...]:
    if len(answers) != REFERENCES:
        raise ValueError(f"{len(answers)} answers, the metric needs exactly ten; take the official file of the split")
    if strange := [answer for answer in answers if not isinstance(answer, str)]:
        raise ValueError(f"an answer must be str, got {quoted(strange[0])}; mend it")
    return tuple(answers)


# VQAv2


def _vqav2(files: TaskFiles) -> list[Question]:
    path, annotations = files.paths[0], Path(files.annotations or "")
    content = read_json(path)
    with within(str(path)):
        subset = need(content, "data_subtype")

    def ask(_: int, one: Any) -> Question:
        image = f"COCO_{subset}_{need(one, 'image_id', int):012d}.jpg"
        return Question(str(one["question_id"]), image, need(one, "question"), (), "")

    questions = parse_all(path, _records(path, content, "questions"), ask, "question")
    noted = list(_records(annotations, read_json(annotations), "annotations"))
    check_ids(annotations, [str(one["question_id"]) for _, one in noted], "question")
    notes = dict(noted)
    pairs = [(place := f"question {question.id}", (question, notes.get(place))) for question in questions]
    return parse_all(annotations, pairs, lambda _, pair: _annotated(*pair), "question")


def _annotated(question: Question, note: Any) -> Question:
    """Give a question of VQAv2 its references and the type of its answer."""
    if note is None:
        raise ValueError("it has no annotation; give the annotations of the same split")
    answers = [need(answer, "answer") for answer in need(note, "answers", list)]
    return replace(question, references=_ten(answers), group=_one_of(VQAV2_TYPES, note, "answer_type"))


# GQA


def _gqa(files: TaskFiles) -> list[Question]:
    path = files.paths[0]
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of questions by id, as GQA's files have")
    # read as pairs, because a dictionary keeps only the last of two questions with one id
    pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=list)
    check_ids(path, [identity for identity, _ in pairs], "question")
    rows = [(f"question {identity}", (identity, record)) for identity, record in content.items()]
    found = parse_all(path, rows, lambda _, row: _gqa_question(*row), "question")
    entailed = {other for one in found if one.record["isBalanced"] for other in one.record["entailed"]}
    return [question for question in found if question.record["isBalanced"] or question.id in entailed]


def _gqa_question(identity: str, record: Any) -> Question:
    structural = need(need(record, "types", dict), "structural")
    need(record["types"], "semantic")
    answer, image = need(record, "answer"), f"{need(record, 'imageId', str, int)}.jpg"
    need(need(record, "groups", dict), "global", str, type(None))
    need(record, "entailed", list)
    for step in need(record, "semantic", list):
        need(step, "operation")
        need(step, "argument")
    need(record, "isBalanced", bool)
    group = "open" if structural == "query" else "binary"
    return Question(identity, image, need(record, "question"), (answer,), group, record)


# POPE


def _pope_category(path: Path) -> list[Question]:
    """Read one of POPE's files; ids begin anew in each, so that the category is made a part of them."""
    category = path.stem.rpartition("_")[2]

    def read(_: int, row: Any) -> Question:
        label = _one_of(POPE_LABELS, readable(row), "label")
        identity = f"{category}/{need(row, 'question_id', int, str)}"
        return Question(identity, need(row, "image"), need(row, "text"), (label,), category)

    return parse_all(path, json_rows(path), read, "question")


# TextVQA


def _textvqa(files: TaskFiles) -> list[Question]:
    path = files.paths[0]
    pure = parse_all(path, _records(path, read_json(path), "data"), lambda _, one: _textvqa_question(one), "question")
    return pure if files.ocr is None else [*pure, *_with_tokens(pure, Path(files.ocr))]


def _textvqa_question(one: Any) -> Question:
    if "answers" not in one:
        raise ValueError("it has no answers; the test split's are not public, take the val file")
    answers, image = _ten(need(one, "answers", list)), f"{need(one, 'image_id', str, int)}.jpg"
    return Question(str(one["question_id"]), image, need(one, "question"), answers, PURE)


def _with_tokens(questions: Sequence[Question], path: Path) -> list[Question]:
    """Return the questions once more, with the OCR tokens of their images in the prompt."""
    rows = _records(path, read_json(path), "data", "image")
    read = parse_all(path, rows, lambda _, one: (f"{one['image_id']}.jpg", need(one, "ocr_tokens", list)), "image")
    tokens = dict(read)
    if lacking := [question for question in questions if question.image not in tokens]:
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
    "pope": lambda files: [question for path in files.paths for question in _pope_category(path)],
    "textvqa": _textvqa,
}
