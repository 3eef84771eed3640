"""Convert the data of DataInf's identification study (github.com/ykwon0407/DataInf) into files that `vlmsel` reads.

    python tools/convert_identification.py grammars_train.jsonl grammars_test.jsonl --out grammars

writes, under --out, one LLaVA file without images for each file given, by its name: `grammars_train.json`. The data
sets of that repository are saved as Arrow files; one JSON object a line, with the keys

    prompt     the question                                    -> human
    text       the prompt, the answer and "</s>"               -> gpt is what follows the prompt, end token left out
    variation  the class                                       -> source

are what `datasets.load_from_disk(folder).to_json(file)` makes of them.

With `--held_out 10` each file is cut in two besides, to choose settings on: the last ten samples of every class are in
`grammars_train_held.json`, the others in `grammars_train_fit.json`.

The maths problems answer "Reason: ... Answer: 8"; `--without_reasons` keeps "Answer: 8", as the study's second set of
them does.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from vlmsel.data.formats import read_records, write_records

END, ANSWER = "</s>", "Answer:"
KEYS = ("prompt", "text", "variation")


def converted(record: Any, reasons: bool = True) -> dict[str, Any]:
    """Return one record in LLaVA's format, without what is before "Answer:" unless `reasons` are kept.

    Raises:
        ValueError: it is not a record of the study; does not name the record.

    >>> converted({"prompt": "1 + 1 -> ", "text": "1 + 1 -> Answer: 2</s>", "variation": "sums"})["conversations"]
    [{'from': 'human', 'value': '1 + 1 ->'}, {'from': 'gpt', 'value': 'Answer: 2'}]
    """
    lacking = [key for key in KEYS if not (isinstance(record, dict) and isinstance(record.get(key), str))]
    if lacking:
        raise ValueError(f"no text under the key {lacking[0]!r}; expected {', '.join(KEYS)}")
    prompt, text = record["prompt"].strip(), record["text"].strip().removesuffix(END)
    answer = text.removeprefix(prompt).strip()
    if not text.startswith(prompt) or not answer:
        raise ValueError("its text is not its prompt and an answer")
    if not reasons:
        if ANSWER not in answer:
            raise ValueError(f"no {ANSWER!r} in what follows its prompt, so that reasons cannot be left out")
        answer = answer[answer.rindex(ANSWER) :]
    turns = [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"source": record["variation"], "conversations": turns}


def convert(path: Path, reasons: bool = True) -> list[dict[str, Any]]:
    """Read a file of the study, with or without reasons; ids are its name and the line.

    Raises:
        ValueError: a line cannot be used: how many, and the first.
    """
    found, problems = [], []
    for number, record in enumerate(read_records(path)):
        try:
            found.append({"id": f"{path.stem}_{number}", **converted(record, reasons)})
        except ValueError as problem:
            problems.append(f"record {number}: {problem}")
    if problems:
        raise ValueError(f"{path}: {len(problems)} records cannot be used; {problems[0]}")
    return found


def cut(records: list[dict[str, Any]], held: int) -> dict[str, list[dict[str, Any]]]:
    """Put the last `held` records of every class into one part and the rest into another."""
    left, parts = Counter(record["source"] for record in records), {"fit": [], "held": []}  # type: ignore[var-annotated]
    for record in records:
        parts["held" if left[record["source"]] <= held else "fit"].append(record)
        left[record["source"]] -= 1
    return parts


def main() -> None:
    """Convert the files given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held_out", type=int, default=0, help="samples of each class to choose settings on")
    parser.add_argument("--without_reasons", action="store_true", help="keep of every answer what starts at 'Answer:'")
    args = parser.parse_args()
    try:
        read = {args.out / f"{path.stem}.json": convert(path, not args.without_reasons) for path in args.files}
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    if args.held_out:
        parts = {path: cut(records, args.held_out) for path, records in read.items()}
        read |= {path.with_stem(f"{path.stem}_{k}"): v for path, part in parts.items() for k, v in part.items() if v}
    for path, records in read.items():
        write_records(path, records)
        kinds = Counter(record["source"] for record in records)
        print(f"{path}: {len(records)} samples of {len(kinds)} classes")


if __name__ == "__main__":
    main()
