"""What a command says while it works: bars with rate, time left and the stage that they are of, notes, and its summary.

Bars are drawn by the first process alone, and only where stderr is a terminal. With `--log_level quiet` there are none,
and of what is printed the summary is left; `debug` adds the libraries' own notes and the traceback of a user's error.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Literal, TextIO

from vlmsel import processes

LogLevel = Literal["quiet", "info", "debug"]
MOST = 10  # lines of a summary
_stages: list[str] = []
_outside: list[TextIO] = []  # where a quiet command's summary goes
_within: list[str] = []  # commands that call others


def bar(what: str | None, total: int | None, unit: str, done: int = 0, values: Iterable[Any] | None = None) -> Any:
    """Return tqdm's bar over `total` units, of which some are done; over `values`, where they are given.

    Nothing is drawn where `what` is None.
    """
    from tqdm import tqdm

    off = True if what is None or _outside or not processes.is_main() else None  # None: where stderr is no terminal
    return tqdm(
        values, total=total, initial=done, desc=staged(what or ""), unit=unit, delay=2, dynamic_ncols=True, disable=off
    )


class Pace:
    """Says after each of a loop's long steps how long it will go on; what was done before takes no time."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.worked, self.seconds = total, 0, 0, 0.0

    @contextmanager
    def step(self, worked: bool) -> Iterator[None]:
        """Take a step, or pass one over."""
        begun = time.perf_counter()
        yield
        self.done += 1
        if worked:
            self.worked, self.seconds = self.worked + 1, self.seconds + time.perf_counter() - begun
            each, left = self.seconds / self.worked, self.total - self.done
            if left and each >= 0.5:
                print(f"== {self.done} of {self.total}, {each:.1f} s each; about {_span(each * left)} left", flush=True)


def _span(seconds: float) -> str:
    """
    >>> _span(20), _span(3000), _span(20000)
    ('1 min', '50 min', '5.6 h')
    """
    return f"{max(1, round(seconds / 60))} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def begin(stages: Sequence[str]) -> None:
    """Say which bars a command will draw, in their order, so that each says which of them it is."""
    _stages[:] = stages


def staged(what: str) -> str:
    """Put the stage before what a bar is called.

    >>> begin(["targets", "score pass"])
    >>> staged("score pass"), staged("other")
    ('[2/2] score pass', 'other')
    """
    return f"[{_stages.index(what) + 1}/{len(_stages)}] {what}" if what in _stages else what


@contextmanager
def speaking(level: LogLevel) -> Iterator[None]:
    """Say as much as `level` has it within the block."""
    if level == "debug":
        os.environ["VLMSEL_DEBUG"] = "1"
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
    if level != "quiet":
        yield
        return
    _outside.append(sys.stdout)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        _outside.pop()


@contextmanager
def within(command: str) -> Iterator[None]:
    """Run a command as a step of another one, which says itself what is next."""
    before = list(_stages)
    _within.append(command)
    try:
        yield
    finally:
        _within.pop()
        begin(before)


def alone() -> bool:
    """Tell whether a command runs by itself and not as a step of another one."""
    return not _within


def ended(*lines: str, then: str = "") -> None:
    """Print what a command ends with, in the first process: what came out and where it lies, and what to type next."""
    if not processes.is_main():
        return
    shown = [line for text in lines for line in text.splitlines() if line][: MOST - 1]
    last = [f"next: {then}"] if then and not _within else []
    if shown or last:
        print("\n".join([*shown, *last]), file=_outside[0] if _outside and not _within else None, flush=True)
