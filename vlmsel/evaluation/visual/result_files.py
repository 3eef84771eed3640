"""Files of answers in the formats of the official servers and scripts, written and read.

VQAv2    a JSON list of {"question_id": int, "answer"}; the server wants every question of the split
GQA      a JSON list of {"questionId": str, "prediction"}; the script compares predictions as they stand
POPE     JSON lines {"question", "answer"}, a file per category; the script matches them to the questions by position
TextVQA  a JSON list of {"question_id": int, "answer"}; one file for questions without OCR tokens, one for those with

Read are also our `predictions.jsonl`, {"question_id", "prompt", "text"}, and LLaVA's answer files, which have the same
keys and more; in LLaVA's file of TextVQA `question_id` is the image's, so that the question is found by its prompt.

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

from vlmsel.evaluation.metrics import gqa_answer
from vlmsel.evaluation.visual.answers import has_ocr_tokens, textvqa_prompt_question
from vlmsel.evaluation.visual.questions import Question
from vlmsel.evaluation.visual.result_entries import POPE, SERVER, AnswerFile, read_file, refuse, shapes_of
from vlmsel.runs import write_text

OCR_ENDING = "/ocr"  # of the id of a TextVQA question that is asked with OCR tokens


# Writing


def write_results(task: str, questions: Sequence[Question], answers: Mapping[str, str], folder: Path) -> list[Path]:
    """Write a task's official files into a run folder and return their paths.

    `vqav2_results.json`, `gqa_results.json`, `pope_<category>_results.json`, `textvqa_{pure,ocr}_results.json`.

    Raises:
        ValueError: the task has no official format, a question has no answer in words, or an id does not fit.
    """
    shapes_of(task)
    _answered(questions, answers)  # of all files, before the first is written
    if task == "pope":
        return to_pope(questions, answers, folder)
    if task == "textvqa":
        groups = {"pure": [q for q in questions if not _with_ocr(q)], "ocr": [q for q in questions if _with_ocr(q)]}
        parts = {folder / f"textvqa_{name}_results.json": own for name, own in groups.items() if own}
    else:
        parts = {folder / f"{task}_results.json": list(questions)}
    write = {"vqav2": to_vqav2_server, "gqa": to_gqa, "textvqa": to_textvqa_server}[task]
    for path, own in parts.items():
        write(own, answers, path)
    return list(parts)


def to_vqav2_server(questions: Sequence[Question], answers: Mapping[str, str], path: Path) -> None:
    """Write VQAv2 answers for EvalAI, as the model gave them: the server normalises by VQAv2's own rules.

    LLaVA's converter applies TextVQA's rules before, which can lose points; this does not.

    Raises:
        ValueError: a question has no answer, or an id is no whole number.
    """
    _write_server(questions, answers, path)


def to_textvqa_server(questions: Sequence[Question], answers: Mapping[str, str], path: Path) -> None:
    """Write TextVQA answers for EvalAI, to questions asked without OCR tokens or to those asked with them.

    Raises:
        ValueError: there are questions of both kinds, a question has no answer, or an id is no whole number.
    """
    if len({_with_ocr(question) for question in questions}) > 1:
        raise ValueError(f"{path}: questions with and without OCR tokens share their ids; write a file for each kind")
    _write_server(questions, answers, path)


def to_gqa(questions: Sequence[Question], answers: Mapping[str, str], path: Path) -> None:
    """Write GQA predictions, stripped, in lower case and without a final period, for its script only compares.

    Raises:
        ValueError: a question has no answer.
    """
    pairs = _answered(questions, answers)
    _write_list(path, [{"questionId": q.id, "prediction": gqa_answer(text)} for q, text in pairs])


def to_pope(questions: Sequence[Question], answers: Mapping[str, str], folder: Path) -> list[Path]:
    """Write `pope_<category>_results.json` for each category, in the order of the questions; return the paths.

    Raises:
        ValueError: a question has no answer.
    """
    lines: dict[Path, list[str]] = {}
    for question, text in _answered(questions, answers):
        line = json.dumps({"question": question.text, "answer": text})
        lines.setdefault(folder / f"pope_{question.group}_results.json", []).append(line + "\n")
    for path, own in lines.items():
        write_text(path, "".join(own))
    return list(lines)


def _with_ocr(question: Question) -> bool:
    return question.id.endswith(OCR_ENDING)


def _write_server(questions: Sequence[Question], answers: Mapping[str, str], path: Path) -> None:
    pairs = [(q.id.removesuffix(OCR_ENDING), text) for q, text in _answered(questions, answers)]
    if strange := [identity for identity, _ in pairs if not re.fullmatch("0|[1-9][0-9]*", identity)]:
        raise ValueError(
            f"{path}: {len(strange)} of {len(pairs)} questions have an id that is no whole number, "
            f"the first: {strange[0]!r}; the server takes the ids of the official files only"
        )
    _write_list(path, [{"question_id": int(identity), "answer": text} for identity, text in pairs])


def _write_list(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write a JSON list in ASCII, an entry a line: the scripts open files in the system's encoding."""
    write_text(path, "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")


def _answered(questions: Sequence[Question], answers: Mapping[str, Any]) -> list[tuple[Question, str]]:
    """Pair all questions with their answers."""
    lacking = [question.id for question in questions if not isinstance(answers.get(question.id), str)]
    if lacking or not questions:
        raise ValueError(
            f"{len(lacking)} of {len(questions)} questions have no answer in words, "
            f"the first: {lacking[0] if lacking else 'none'}; a file of results needs all of them"
        )
    return [(question, answers[question.id]) for question in questions]


# Reading


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
    named = {"pure", "ocr"} & set(_words_of(file.path.stem))
    kinds = named or {"ocr" if _with_ocr(question) else "pure" for question in questions}
    if len(kinds) > 1:
        raise ValueError(
            f"{file.path}: are its answers to questions with OCR tokens? name it textvqa_ocr_results.json, "
            "or textvqa_pure_results.json for those without"
        )
    return OCR_ENDING if kinds == {"ocr"} else ""


def _has_image_ids(file: AnswerFile, known: Mapping[str, Any], questions: Sequence[Question]) -> bool:
    images = {question.image for question in questions}
    return not any(name in known for name in file.names) and any(f"{name}.jpg" in images for name in file.names)


def _by_prompt(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Return the ids of the questions which one entry of LLaVA's TextVQA file answers: the same asked of an image."""
    found: dict[str, list[str]] = {}
    for question in questions:
        asked = textvqa_prompt_question(question.text + "\n")  # the text may have a line of OCR tokens
        found.setdefault(_prompt_name(question.image, asked, _with_ocr(question)), []).append(question.id)
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
