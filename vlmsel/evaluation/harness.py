"""Ask every question once, batch by batch, into a file of answers that a stopped run goes on from.

`predictions.jsonl` has one line per question: `question_id`, what was asked (`prompt`, and `choices` where there are
some) and the answer (`text`, or log-probabilities). A line that a killed process left half-written is dropped and its
question asked again. An answer is used again only if the question would be asked in the same words.

Several processes deal the batches among them. All but the first write files of their own, `predictions.<rank>.jsonl`;
these are merged at the end, or by the next run, which may have another number of processes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlmsel import processes, progress, runs
from vlmsel.data.rows import json_rows

Prepared = TypeVar("Prepared")
Line = dict[str, Any]
Ids = Sequence[str]
BROKEN = "delete the file to start anew"


@dataclass(frozen=True)
class Responder(Generic[Prepared]):
    """How a batch of questions, given by id, is answered; with `ahead` the next is prepared beside it, in a thread.

    Questions of either `kind`, with and without an image, are in no batch together.
    """

    prepare: Callable[[Ids], Prepared]
    respond: Callable[[Prepared], Sequence[Any]]
    ahead: bool = False
    kind: Callable[[str], bool] = lambda _: False


def answer_all(
    asked: Mapping[str, Line],
    responder: Responder[Any],
    path: Path,
    answer: str = "text",
    batch_size: int = 32,
    order: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Answer the questions that `path` does not hold yet and return the answers to all of them by question id.

    Args:
        asked: by question id, what the answer depends on; written beside the answer.
        responder: answers a batch.
        path: the predictions file.
        answer: the name of what is answered.
        batch_size: questions per batch.
        order: what questions are sorted by, given by id, to make batches; the length of what is asked when left out.

    Raises:
        ValueError: the predictions file cannot be gone on from, or scores are no numbers.
    """
    earlier = _earlier(path, answer)
    _require_same(earlier, asked, path)
    processes.wait()  # nobody writes before all have read
    todo = sorted(
        (i for i in asked if i not in earlier),
        key=order or (lambda i: sum(len(str(value)) for value in asked[i].values())),
    )
    parts = [list(part) for _, part in groupby(sorted(todo, key=responder.kind), responder.kind)]
    batches = [part[start : start + batch_size] for part in parts for start in range(0, len(part), batch_size)]
    own = batches[processes.rank() :: processes.count()]
    done, quiet = len(asked) - sum(map(len, own)), not processes.is_main()
    mine = path.with_name(f"{path.stem}.{processes.rank()}{path.suffix}") if quiet else path
    with progress.bar("answering", len(asked), "question", done) as bar:
        for batch, prepared in _prepared(own, responder):
            found = responder.respond(prepared)
            if answer != "text":
                _require_finite(batch, found)
            _append(mine, [{"question_id": i, **asked[i], answer: a} for i, a in zip(batch, found, strict=True)])
            bar.update(len(batch))
    return _gather(path, asked, answer)


def _require_finite(ids: Sequence[str], found: Sequence[Sequence[float]]) -> None:
    """Refuse scores that are no numbers: compared with another, NaN would count as an answer."""
    if bad := [i for i, scores in enumerate(found) if not all(map(math.isfinite, scores))]:
        raise ValueError(
            f"question {ids[bad[0]]}: the model's scores are {found[bad[0]]} (such are those of {len(bad)} of the "
            f"batch's {len(ids)} questions); look at the model's weights, or try --dtype float32"
        )


def _prepared(batches: Sequence[Ids], responder: Responder[Prepared]) -> Iterator[tuple[Ids, Prepared]]:
    """Give each batch as it is prepared."""
    if not responder.ahead:
        yield from ((batch, responder.prepare(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting: list[Future[Prepared]] = []
        for batch, following in zip([[], *batches], [*batches, None], strict=True):
            ready = [future.result() for future in waiting]
            waiting = [] if following is None else [thread.submit(responder.prepare, following)]
            yield from ((batch, prepared) for prepared in ready)


# The files


def _files(path: Path) -> list[Path]:
    """Return the predictions file and those that other processes left, where they exist."""
    parts = sorted(path.parent.glob(f"{path.stem}.*{path.suffix}"))
    return [file for file in (path, *parts) if file.is_file()]


def _earlier(path: Path, answer: str) -> dict[str, Line]:
    """Read all files; the first process has cut off their unfinished lines before the others look."""
    if processes.is_main():
        for file in _files(path):
            content = file.read_bytes()
            if (whole := content.rfind(b"\n") + 1) < len(content):
                os.truncate(file, whole)
    processes.wait()
    return read_lines(*_files(path), answer=answer)


def read_lines(*paths: Path, answer: str = "text") -> dict[str, Line]:
    """Return the lines of predictions files by question id.

    Raises:
        ValueError: a line cannot be read, or a question has two different answers.
    """
    lines: dict[str, Line] = {}
    for path in paths:
        for place, line in json_rows(path) if path.stat().st_size else ():
            if not _is_prediction(line, answer):
                raise ValueError(f"{path}: {place} is no prediction; {BROKEN}")
            if lines.setdefault(name := line["question_id"], line) != line:
                raise ValueError(
                    f"{path}: {place} gives question {name} another answer than a line before it; {BROKEN}"
                )
    return lines


def _is_prediction(line: Any, answer: str) -> bool:
    if not isinstance(line, dict) or not all(isinstance(line.get(name), str) for name in ("question_id", "prompt")):
        return False
    value = line.get(answer)
    if answer == "text":
        return isinstance(value, str)
    return isinstance(value, list) and all(isinstance(one, int | float) and math.isfinite(one) for one in value)


def _require_same(earlier: Mapping[str, Line], asked: Mapping[str, Line], path: Path) -> None:
    for identity, now in asked.items():
        was = earlier.get(identity, now)
        if name := next((name for name in now if was.get(name) != now[name]), None):
            raise ValueError(
                f"{path}: question {identity} was asked as {was.get(name)!r}, now it would be {now[name]!r}; "
                "choose another --out or delete the file"
            )


def _append(path: Path, lines: Sequence[Line]) -> None:
    """Add a batch to the file, which is made with the first answers: before them there is nothing to go on from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with runs.writing(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(_text(lines))


def _text(lines: Iterable[Line]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _gather(path: Path, asked: Mapping[str, Line], answer: str) -> dict[str, Any]:
    """Merge what all processes wrote and return the answers to what was asked."""
    processes.wait()
    found = read_lines(*(files := _files(path)), answer=answer)
    processes.wait()  # nobody removes a file before all have read it
    if processes.is_main() and len(files) > 1:
        runs.write_text(path, _text(found.values()))
        for file in files[1:]:
            file.unlink()
    return {identity: found[identity][answer] for identity in asked}
