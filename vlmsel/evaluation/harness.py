"""Ask every question once, batch by batch, into a file of answers that a stopped run goes on from.

`predictions.jsonl` has one line `{"question_id", "prompt", "text"}` per question. A line that a killed process left
half-written is dropped and its question asked again. An answer is used again only if the question would be asked in the
same words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from vlmsel.evaluation.questions import Question

# As in LLaVA-1.5; the line break before it is part of the protocol.
SUFFIXES = {"short": "\nAnswer the question using a single word or phrase.", "bare": ""}


def prompt(question: Question, protocol: str) -> str:
    """Return what the model is asked.

    Raises:
        ValueError: there is no such protocol.
    """
    if protocol not in SUFFIXES:
        raise ValueError(f"protocol must be one of {', '.join(SUFFIXES)}; got {protocol!r}")
    return question.text + SUFFIXES[protocol]


def read_answers(path: Path) -> dict[str, tuple[str, str]]:
    """Return (prompt, answer) by question id from a predictions file; an unfinished last line is cut off the file.

    Raises:
        ValueError: another line cannot be read, or a question has two different answers.
    """
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    answers: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        identity, found = _read_line(line, f"{path}: line {number}")
        if answers.setdefault(identity, found) != found:
            raise ValueError(
                f"{path}: line {number} gives question {identity} another answer than a line before it; "
                "delete the file to start anew"
            )
    return answers


def _read_line(line: bytes, place: str) -> tuple[str, tuple[str, str]]:
    try:
        one = json.loads(line)
        identity, asked, text = one["question_id"], one["prompt"], one["text"]
    except (ValueError, KeyError, TypeError):  # UnicodeDecodeError is a ValueError
        identity = asked = text = None
    if not (isinstance(identity, str) and isinstance(asked, str) and isinstance(text, str)):
        raise ValueError(f"{place} is no prediction; delete the file to start anew")
    return identity, (asked, text)


def answer_all(
    questions: Sequence[Question],
    generate: Callable[[Sequence[tuple[Question, str]]], Sequence[str]],
    path: Path,
    protocol: str = "short",
    batch_size: int = 32,
) -> dict[str, str]:
    """Answer the questions that `path` does not hold yet and return the answers to all of them by question id.

    Args:
        questions: the questions, in any order; their ids must differ.
        generate: answers a batch of (question, prompt).
        path: the predictions file.
        protocol: short or bare.
        batch_size: questions per batch.

    Raises:
        ValueError: two questions have one id, a setting is wrong, or the predictions file cannot be gone on from.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    prompts = {q.id: prompt(q, protocol) for q in questions}
    if len(prompts) < len(questions):
        raise ValueError(f"{len(questions)} questions have only {len(prompts)} different ids; no two may share one")
    earlier = read_answers(path)
    _require_same_prompts(earlier, prompts, path)
    answers = {identity: text for identity, (_, text) in earlier.items() if identity in prompts}
    todo = sorted((q for q in questions if q.id not in answers), key=lambda q: len(q.text))
    with tqdm(total=len(questions), initial=len(answers), desc="answering", unit="question", delay=2) as bar:
        for start in range(0, len(todo), batch_size):
            batch = [(q, prompts[q.id]) for q in todo[start : start + batch_size]]
            texts = generate(batch)
            answers |= {q.id: text for (q, _), text in zip(batch, texts, strict=True)}
            _append(path, batch, texts)
            bar.update(len(batch))
    return answers


def _require_same_prompts(earlier: dict[str, tuple[str, str]], prompts: dict[str, str], path: Path) -> None:
    for identity, (asked, _) in earlier.items():
        if prompts.get(identity, asked) != asked:
            raise ValueError(
                f"{path}: question {identity} was asked as {asked!r}, now it would be {prompts[identity]!r}; "
                "choose another --out or delete the file"
            )


def _append(path: Path, batch: Sequence[tuple[Question, str]], texts: Sequence[str]) -> None:
    """Add a batch to the file, which is made with the first answers: before them there is nothing to go on from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as file:
        for (question, asked), text in zip(batch, texts, strict=True):
            line = {"question_id": question.id, "prompt": asked, "text": text}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
