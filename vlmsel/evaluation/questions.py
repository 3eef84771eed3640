"""The questions of the four benchmarks, read from the official files.

VQAv2    questions and annotations (`v2_OpenEnded_mscoco_*_questions.json`, `v2_mscoco_*_annotations.json`)
GQA      a dictionary of questions (`testdev_balanced_questions.json`); only balanced ones are asked
POPE     JSON lines, one file per category (`coco_pope_{random,popular,adversarial}.json`)
TextVQA  `TextVQA_0.5.1_val.json`; questions are asked without OCR tokens

Every file is checked as a whole before a question is asked, so that no metric is taken over fewer questions than the
benchmark has.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel.runs import read_json

REFERENCES = 10  # per question of VQAv2 and TextVQA
POPE_LABELS = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """A question about an image; `group` is what metrics are split by, `references` are the right answers."""

    id: str
    image: str
    text: str
    references: tuple[str, ...]
    group: str


def read_questions(name: str, questions: Sequence[str | Path], annotations: str | Path | None = None) -> list[Question]:
    """Read a benchmark's official files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is too many or too few, or not what it should be; names file and question.
    """
    paths = [Path(path) for path in questions]
    if not paths or (len(paths) > 1 and name != "pope"):
        raise ValueError(
            f"{name} needs {'question files' if name == 'pope' else 'one question file'}, got {len(paths)}"
        )
    if (annotations is not None) != (name == "vqav2"):
        raise ValueError(f"{name} {'needs an' if name == 'vqav2' else 'has no'} annotations file")
    found = READERS[name](paths, None if annotations is None else Path(annotations))
    if not found:
        raise ValueError(f"{paths[0]}: no question in it; is this the benchmark's official file?")
    if twice := _repeated([question.id for question in found]):
        mend = "give each category's file once" if name == "pope" else "take one of the two out"
        raise ValueError(f"{paths[0]}: question {twice} occurs more than once; {mend}")
    return found


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _need(record: Any, key: str, place: str, kind: type | tuple[type, ...] = str) -> Any:
    """Get a value of the right kind from a record of a file, or say what is wrong where."""
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{place}: no {key!r}; is this the benchmark's official file?")
    if not isinstance(record[key], kind) or isinstance(record[key], bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{place}: {key!r} must be {kinds}, got {str(record[key])[:40]!r}; mend it")
    return record[key]


def _ten(answers: Sequence[Any], place: str) -> tuple[str, ...]:
    if len(answers) != REFERENCES:
        raise ValueError(
            f"{place} has {len(answers)} answers, the metric needs exactly ten; take the official file of the split"
        )
    strange = [answer for answer in answers if not isinstance(answer, str)]
    if strange:
        raise ValueError(f"{place}: an answer must be str, got {strange[0]!r}; mend it")
    return tuple(answers)


def _vqav2(paths: Sequence[Path], annotations: Path | None) -> list[Question]:
    assert annotations is not None
    path, content, noted = paths[0], read_json(paths[0]), _annotations(annotations)
    subset = _need(content, "data_subtype", str(path))
    found = []
    for one in _need(content, "questions", str(path), list):
        number = str(_need(one, "question_id", str(path), (int, str)))
        place = f"{annotations}: question {number}"
        if number not in noted:
            raise ValueError(f"{place} of {path} has no annotation; give the annotations of the same split")
        answers = [_need(answer, "answer", place) for answer in _need(noted[number], "answers", place, list)]
        kind = str(noted[number].get("answer_type", "other"))
        asked = f"{path}: question {number}"
        image = f"COCO_{subset}_{_need(one, 'image_id', asked, int):012d}.jpg"
        found.append(Question(number, image, _need(one, "question", asked), _ten(answers, place), kind))
    return found


def _annotations(path: Path) -> dict[str, Any]:
    """Read VQAv2's annotations by question id."""
    noted: dict[str, Any] = {}
    for one in _need(read_json(path), "annotations", str(path), list):
        number = str(_need(one, "question_id", str(path), (int, str)))
        if number in noted:
            raise ValueError(f"{path}: question {number} is annotated more than once; take one of the two out")
        noted[number] = one
    return noted


def _gqa(paths: Sequence[Path], annotations: Path | None) -> list[Question]:
    path, content = paths[0], read_json(paths[0])
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of questions by id, as GQA's files have")
    # read as pairs, because a dictionary keeps only the last of two questions with one id
    pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
    if twice := _repeated([identity for identity, _ in pairs]):
        raise ValueError(f"{path}: question {twice} occurs more than once; take one of the two out")
    found = []
    for identity, one in content.items():
        place = f"{path}: question {identity}"
        structural = _need(_need(one, "types", place, dict), "structural", place)
        answer, image = _need(one, "answer", place), f"{_need(one, 'imageId', place, (str, int))}.jpg"
        group = "open" if structural == "query" else "binary"
        if one.get("isBalanced", True):
            found.append(Question(identity, image, _need(one, "question", place), (answer,), group))
    return found


def _pope(paths: Sequence[Path], annotations: Path | None) -> list[Question]:
    return [question for path in paths for question in _pope_category(path)]


def _pope_category(path: Path) -> list[Question]:
    """Read one of POPE's files; ids begin anew in each, so that the category is made a part of them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    category, found = path.stem.rpartition("_")[2], []
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not a text file ({problem}); POPE's files are JSON lines") from None
    for number, line in enumerate(lines, start=1):
        place = f"{path}: line {number}"
        try:
            one = json.loads(line)
        except json.JSONDecodeError as problem:
            raise ValueError(f"{place}: not JSON ({problem}); POPE's files are JSON lines") from None
        label = _need(one, "label", place)
        if label not in POPE_LABELS:
            raise ValueError(f"{place}: label must be yes or no, got {label!r}; mend it")
        identity = f"{category}/{_need(one, 'question_id', place, (int, str))}"
        found.append(Question(identity, _need(one, "image", place), _need(one, "text", place), (label,), category))
    return found


def _textvqa(paths: Sequence[Path], annotations: Path | None) -> list[Question]:
    path, found = paths[0], []
    for one in _need(read_json(path), "data", str(path), list):
        identity = str(_need(one, "question_id", str(path), (int, str)))
        place = f"{path}: question {identity}"
        if "answers" not in one:
            raise ValueError(f"{place} has no answers; the test split's are not public, take the val file")
        answers = _ten(_need(one, "answers", place, list), place)
        image = f"{_need(one, 'image_id', place, (str, int))}.jpg"
        found.append(Question(identity, image, _need(one, "question", place), answers, "all"))
    return found


Reader = Callable[[Sequence[Path], "Path | None"], list[Question]]
READERS: dict[str, Reader] = {"vqav2": _vqav2, "gqa": _gqa, "pope": _pope, "textvqa": _textvqa}
