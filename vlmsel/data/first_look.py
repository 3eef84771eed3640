"""What is told once of a pool and its target files as they are read, because no score shows it.

    samples of the pool that repeat earlier ones
    target samples that are in the pool, or that ask what an evaluation asks
    answers of a target file that fit none of its labels: yes and no where it is POPE's, or where nearly all answers are
    among them, letters of options likewise

Samples are compared by the keys that reading them gives (`key_of`: paths of images and texts), so that a pool of any
size costs a sort. `vlmsel inspect` compares pictures by their bytes, finds near-duplicates, and writes a pool without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vlmsel import processes, progress
from vlmsel.checks import quoted
from vlmsel.data.contamination import asked, contaminated
from vlmsel.data.formats.pool import Samples
from vlmsel.data.sample import Sample

NEARLY = 0.9  # of a target file's answers from which on the others are strange


def tell(
    path: str,
    pool: Sequence[Sample],
    targets: Mapping[str, Sequence[Sample]],
    against: str | Sequence[str] | None = None,
) -> None:
    """Print what `first_look` finds, unless the command is a step of another, which did.

    Raises:
        FileNotFoundError, ValueError: an evaluation file cannot be read.
    """
    if processes.is_main() and progress.alone():
        files = [against] if isinstance(against, str) else against or ()
        own = {name: _index(samples) for name, samples in targets.items()}
        for line in first_look(path, _index(pool), own, files):
            print(line)


def _index(samples: Sequence[Sample]) -> Samples:
    assert isinstance(samples, Samples), "samples are those that reading a file gave"
    return samples


def first_look(path: str, pool: Samples, targets: Mapping[str, Samples], against: Sequence[str]) -> Iterator[str]:
    """Say what is to be said of a pool and its target files, a line each; `against` are evaluation files."""
    if len(twice := repeated(pool.keys)):
        more = f"{path}: {len(twice)} of {len(pool)} samples repeat earlier ones (the first: {pool.uids[twice[0]]})"
        yield f"{more}; `vlmsel inspect {path} --write_clean FILE` leaves them out"
    questions = {file: asked(file) for file in against}
    for name, samples in targets.items():
        what = f"target {name}: {{}} of {len(samples)} samples"
        if len(both := np.flatnonzero(np.isin(samples.keys, pool.keys))):
            place = np.flatnonzero(pool.keys == samples.keys[both[0]])[0]
            first = f"the first: {samples.uids[both[0]]}, the pool's {pool.uids[place]}"
            yield f"{what.format(len(both))} are in the pool ({first}) and speak for themselves"
        for file, own in questions.items():
            if uids := contaminated(samples, own):
                yield f"{what.format(len(uids))} ask what {file} asks (the first: {uids[0]}), which judges them no more"
        yield from _strange(name, samples)


def repeated(keys: np.ndarray) -> np.ndarray:
    """Return the places whose key is that of an earlier place, in order.

    >>> repeated(np.array([3, 5, 3, 3])).tolist()
    [2, 3]
    """
    first = np.unique(keys, return_index=True)[1]
    return np.setdiff1d(np.arange(len(keys)), first)


def _yes_or_no(answer: str) -> bool:
    return bool(re.match(r"(yes|no|not)\b", answer.strip().lower()))


def _letter(answer: str) -> bool:
    return bool(re.fullmatch(r"\(?[A-Z][.):]?(\s.*)?", answer.strip(), re.DOTALL)) and not answer.startswith(
        ("A ", "I ")
    )


LABELS: dict[str, Callable[[str], bool]] = {"neither yes nor no": _yes_or_no, "no letter of an option": _letter}


def _strange(name: str, samples: Sequence[Sample]) -> Iterator[str]:
    """Say how many answers fit none of the labels that the others are."""
    answers = [(sample.uid, answer) for sample in samples for answer in sample.said("gpt")]
    for what, fits in LABELS.items():
        other = [(uid, answer) for uid, answer in answers if not fits(answer)]
        known = "pope" in name.lower() and fits is _yes_or_no
        if other and (known or len(other) <= (1 - NEARLY) * len(answers)):
            uid, answer = other[0]
            first = f"the first: sample {uid}, {quoted(answer, 40)}"
            yield f"target {name}: {len(other)} of {len(answers)} answers are {what} ({first})"
