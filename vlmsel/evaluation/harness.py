"""Ask every question once, batch by batch, into a file of answers that a stopped run goes on from.

`predictions.jsonl` has one line `{"question_id", "prompt", "text"}` per question. A line that a killed process left
half-written is dropped and its question asked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from vlmsel.evaluation.tasks import Question

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


def read_answers(path: Path) -> dict[str, str]:
    """Return the answers in a predictions file by question id; an unfinished last line is cut off the file.

    Raises:
        ValueError: another line cannot be read.
    """
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    answers = {}
    for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], start=1):
        try:
            one = json.loads(line)
            answers[one["question_id"]] = one["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path}: line {number} is no prediction; delete the file to start anew") from None
    return answers


def answer_all(
    questions: Sequence[Question],
    generate: Callable[[Sequence[tuple[Question, str]]], Sequence[str]],
    path: Path,
    protocol: str = "short",
    batch_size: int = 32,
) -> dict[str, str]:
    """Answer the questions that `path` does not hold yet and return all answers by question id.

    Args:
        questions: the questions, in any order; their ids must differ.
        generate: answers a batch of (question, prompt).
        path: the predictions file.
        protocol: short or bare.
        batch_size: questions per batch.
    """
    answers = read_answers(path)
    todo = sorted((q for q in questions if q.id not in answers), key=lambda q: len(q.text))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a", encoding="utf-8", newline="\n") as file,
        tqdm(total=len(questions), initial=len(questions) - len(todo), desc="answering", unit="question") as bar,
    ):
        for start in range(0, len(todo), batch_size):
            batch = [(q, prompt(q, protocol)) for q in todo[start : start + batch_size]]
            for (question, asked), text in zip(batch, generate(batch), strict=True):
                line = {"question_id": question.id, "prompt": asked, "text": text}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                answers[question.id] = text
            file.flush()
            bar.update(len(batch))
    return answers
