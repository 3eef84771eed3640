"""Convert multiple-choice questions into what `vlmsel` tunes, scores and evaluates a language model on.

    python tools/convert_choices.py hellaswag hellaswag_train.jsonl --out hellaswag --target 300 --test 700 --seed 0
    python tools/convert_choices.py piqa train.jsonl --labels train-labels.lst --out piqa
    python tools/convert_choices.py instructions ARC-Easy/train.json --source arc_easy --out arc_easy

reads the official files of QASC, HellaSwag, PIQA and LogiQA, or the lists `{instruction, input, output, answer}` that
LLM-Adapters (arXiv 2304.01933) made of ARC-Easy and OpenBookQA. It writes, under --out,

    pool.json, target.json   LLaVA format without images: the human turn is the context that `vlmsel evaluate` asks
                             with, the answer is the right choice, `source` names the data set
    test.jsonl or test.txt   questions that are in neither, in their official format, for `vlmsel evaluate --questions`
                             (PIQA: with test-labels.lst, for --annotations; LLM-Adapters' lists: --task qasc)

The parts are drawn with --seed. A context that comes again is left out the second time, so that no question is in two
parts; how many these are is printed. With the template `text`, training reads id by id what evaluation scores.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsel.data.formats import write_records
from vlmsel.data.multiple_choice import TASKS, ChoiceQuestion, is_text, logiqa_items, read_choices
from vlmsel.data.rows import json_rows, parse_all, read_lines
from vlmsel.evaluation.text.prompts import choice_context
from vlmsel.runs import write_text

INSTRUCTIONS = "instructions"
HEAD = re.compile(r"^.*?: (?P<question>.*)\n\n(?P<options>Answer1: .*?)\n\nAnswer format: [^\n]*$", re.DOTALL)


@dataclass(frozen=True)
class Entry:
    """A question, its text in the official format, and what it is asked with."""

    question: ChoiceQuestion
    raw: str
    context: str

    @property
    def characters(self) -> int:
        """Characters of the context and the longest choice."""
        return len(self.context) + max(map(len, self.question.choices))


def read_entries(task: str, path: Path, labels: Path | None = None) -> list[Entry]:
    """Read a file of questions, all of which must have their answer.

    Raises:
        ValueError: the file is not what it should be, or has no answers.
    """
    raw = instruction_records(path) if task == INSTRUCTIONS else official_records(task, path)
    if task == INSTRUCTIONS:
        questions = [adapted(number, json.loads(text)) for number, text in enumerate(raw)]
    else:
        questions = read_choices(task, path, labels)
    if questions[0].answer is None:
        raise ValueError(f"{path}: its answers are not public; take the training or the validation file")
    name = "qasc" if task == INSTRUCTIONS else task
    return [Entry(one, text, choice_context(name, one)) for one, text in zip(questions, raw, strict=True)]


def official_records(task: str, path: Path) -> list[str]:
    """Return the text of every record of an official file, in order."""
    if is_text(task, path):
        return ["\n".join(lines) for _, lines in logiqa_items(path)]
    lines = [line for line in read_lines(path) if line.strip()]
    if lines[0].lstrip().startswith("["):
        return [json.dumps(record) for _, record in json_rows(path)]
    return lines


def instruction_records(path: Path) -> list[str]:
    """Read an LLM-Adapters list and return each question as `{query, cands, answer}`, which the task qasc reads.

    Raises:
        ValueError: it is no such list; names the first record and how many there are.
    """
    if not (parsed := parse_all(path, json_rows(path), lambda number, record: parse_instruction(record), "question")):
        raise ValueError(f"{path}: no question in it; take LLM-Adapters' file")
    clear = [one for one in parsed if one["cands"].count(one["answer"]) == 1]
    if len(clear) < len(parsed):
        print(
            f"{path}: {len(parsed) - len(clear)} of {len(parsed)} questions left out: their right option is there twice"
        )
    return [json.dumps(one) for one in clear]


def parse_instruction(record: Any) -> dict[str, Any]:
    """Take the question and its options out of an instruction.

    >>> parse_instruction({"instruction": "Choose: Is it wet?\\n\\nAnswer1: no Answer2: yes\\n\\nAnswer format: a/b",
    ...                    "answer": "answer2"})
    {'query': 'Is it wet?', 'cands': ['no', 'yes'], 'answer': 'yes'}
    """
    text, answer = (record.get(key) for key in ("instruction", "answer")) if isinstance(record, dict) else (None, None)
    found = HEAD.match(text) if isinstance(text, str) else None
    if found is None or not isinstance(answer, str):
        raise ValueError("no 'instruction' with 'Answer1: ...' and 'Answer format: ...', or no 'answer'; mend it")
    parts = re.split(r"(?:^|\s+)Answer(\d+): ?", found["options"])[1:]
    numbers, options = parts[::2], [option.strip() for option in parts[1::2]]
    if numbers != [str(at) for at in range(1, len(numbers) + 1)] or len(numbers) < 2 or not all(options):
        raise ValueError(f"the options are not numbered from 1 on, or one is empty: {found['options'][:60]!r}; mend it")
    if answer.removeprefix("answer") not in numbers:
        raise ValueError(f"the answer {answer[:40]!r} is none of the {len(numbers)} options; mend it")
    return {
        "query": found["question"].strip(),
        "cands": options,
        "answer": options[int(answer.removeprefix("answer")) - 1],
    }


def adapted(number: int, record: dict[str, Any]) -> ChoiceQuestion:
    """Return a question as the task qasc reads it from `{query, cands, answer}`."""
    options = record["cands"]
    return ChoiceQuestion(str(number), record["query"], tuple(options), options.index(record["answer"]))


def split(entries: list[Entry], pool: int | None, target: int, test: int, seed: int) -> dict[str, list[Entry]]:
    """Deal questions with different contexts out to pool, target and test; the pool takes the rest when None.

    Raises:
        ValueError: there are too few.
    """
    distinct = list({entry.context: entry for entry in reversed(entries)}.values())[::-1]
    rest = len(distinct) - target - test
    if min(target, test) < 0 or not 1 <= (rest if pool is None else pool) <= rest:
        raise ValueError(
            f"{len(distinct)} different questions cannot give {target} for the target, {test} for the test and "
            f"{'any' if pool is None else pool} for the pool; ask for fewer"
        )
    random.Random(f"choices {seed}").shuffle(distinct)
    held, later = distinct[:target], distinct[target : target + test]
    return {"target": held, "test": later, "pool": distinct[target + test :][:pool]}


def record(entry: Entry, source: str) -> dict[str, Any]:
    """Return a question with its right choice in LLaVA format."""
    question = entry.question
    assert question.answer is not None
    turns = [
        {"from": "human", "value": entry.context},
        {"from": "gpt", "value": question.choices[question.answer]},
    ]
    return {"id": f"{source}_{question.id}", "source": source, "conversations": turns}


def write_parts(parts: dict[str, list[Entry]], task: str, source: str, out: Path, labelled: bool) -> None:
    """Write pool, target and test questions; `labelled` says that the answers were in a file of their own."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("pool", "target"):
        write_records(out / f"{name}.json", [record(entry, source) for entry in parts[name]])
    as_text = task == "logiqa" and not parts["test"][:1][0].raw.startswith("{") if parts["test"] else False
    lines = "".join(entry.raw + "\n" for entry in parts["test"])
    write_text(out / ("test.txt" if as_text else "test.jsonl"), lines)
    if labelled:
        write_text(out / "test-labels.lst", "".join(f"{entry.question.answer}\n" for entry in parts["test"]))


def convert(
    task: str,
    questions: Path,
    out: Path,
    labels: Path | None = None,
    source: str | None = None,
    pool: int | None = None,
    target: int = 300,
    test: int = 700,
    seed: int = 0,
    longest: int | None = None,
) -> dict[str, int]:
    """Convert a file; return how many questions are in each part, and how many are too long or repeat another."""
    every = read_entries(task, questions, labels)
    entries = [one for one in every if longest is None or one.characters <= longest]
    parts = split(entries, pool, target, test, seed)
    write_parts(
        parts, task, source or (questions.parent.name if task == INSTRUCTIONS else task), out, labels is not None
    )
    repeated = len(entries) - len({entry.context for entry in entries})
    return {
        **{name: len(part) for name, part in parts.items()},
        "repeated": repeated,
        "too_long": len(every) - len(entries),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=(*TASKS, INSTRUCTIONS))
    parser.add_argument("questions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="PIQA's file of labels")
    parser.add_argument("--source", help="name of the data set in `source`; the task's name when left out")
    parser.add_argument("--pool", type=int, help="questions in the pool; all that are left when left out")
    parser.add_argument("--target", type=int, default=300, help="questions in the target set")
    parser.add_argument("--test", type=int, default=700, help="questions held out for evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, help="leave out questions of more characters with their longest choice")
    args = parser.parse_args()
    try:
        counts = convert(**vars(args))
    except (ValueError, OSError) as problem:
        parser.exit(2, f"error: {problem}\n")
    print(", ".join(f"{name} {count}" for name, count in counts.items()) + f"; under {args.out}")


if __name__ == "__main__":
    main()
