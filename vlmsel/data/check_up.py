"""A check-up of a pool: what it is made of, and every fault by kind with the uids that have it.

Kinds of faults (`FAULTS`) that make a sample useless or misleading are those that a clean copy leaves out: records that
cannot be read, pictures that are missing or broken, empty answers, exact duplicates but the first, and what an
evaluation asks about. The others are told only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vlmsel.data.contamination import asked, contaminated
from vlmsel.data.dataset import look_at_images
from vlmsel.data.duplicates import Look, groups, plain_text, similar_pictures, similar_texts
from vlmsel.data.formats import Pool
from vlmsel.data.formats.pictures import InPool, Picture
from vlmsel.data.images import FORMATS, find_image, image_digest, load_image, require_folder
from vlmsel.data.sample import Sample

DROPPED = ("unreadable record", "missing picture", "broken picture", "empty answer", "exact duplicate", "contaminated")
TOLD = ("extension disagrees", "same picture twice", "near-duplicate text", "near-duplicate picture", "loses tokens")
FAULTS = (*DROPPED, *TOLD)
SUFFIXES = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "GIF": (".gif",), "WEBP": (".webp",),
            "BMP": (".bmp",), "PPM": (".ppm", ".pgm", ".pnm", ".pbm"), "TIFF": (".tif", ".tiff")}  # fmt: skip


@dataclass
class CheckUp:
    """What was found.

    Attributes:
        total: records of the file.
        counts: how many samples by source, by turns and by pictures.
        lengths: quantiles of words per answer.
        faults: by kind, uid -> what is wrong.
        not_looked_at: how many pictures of samples need an image folder that was not given.
    """

    total: int
    counts: dict[str, dict[str, int]]
    lengths: dict[str, float]
    faults: dict[str, dict[int, str]] = field(default_factory=lambda: {kind: {} for kind in FAULTS})
    not_looked_at: int = 0

    def dropped(self) -> set[int]:
        """Return the uids that a clean copy leaves out."""
        return {uid for kind in DROPPED for uid in self.faults[kind]}

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        faults = {kind: {str(uid): why for uid, why in sorted(own.items())} for kind, own in self.faults.items()}
        return {"records": self.total, **self.counts, "words per answer": self.lengths, "faults": faults}


class Seen(NamedTuple):
    """What was seen of a picture: the hash of its bytes, what its name says wrongly, "" for nothing, and its look."""

    digest: str
    fault: str
    look: Look


def check_up(pool: Pool, images: str | Path | None = None, against: Sequence[str] = ()) -> CheckUp:
    """Look at a pool.

    Args:
        pool: what `read_samples` gave.
        images: what image paths are relative to; when None, pictures alone are looked at that lie in the pool or in
            folders that it names.
        against: evaluation files that no sample should be asked from.

    Raises:
        FileNotFoundError, ValueError: the image folder or an evaluation file cannot be used.
    """
    samples = list(pool.samples)
    questions: set[tuple[str, str]] = set().union(*map(asked, against))
    found = CheckUp(len(pool.records), _counts(samples), _lengths(samples))
    found.faults["unreadable record"] = {problem.uid: problem.reason for problem in pool.problems}
    for sample in samples:
        if not all(text.strip() for text in sample.said("gpt")):
            found.faults["empty answer"][sample.uid] = "an answer without text"
    digests = _pictures(found, samples, None if images is None else require_folder(images))
    _texts(found, samples, digests)
    for uid in contaminated(samples, questions):
        found.faults["contaminated"][uid] = "an evaluation asks the same"
    return found


def _counts(samples: Sequence[Sample]) -> dict[str, dict[str, int]]:
    kinds = {
        "sources": Counter(sample.source for sample in samples),
        "turns": Counter(str(len(sample.turns)) for sample in samples),
        "pictures": Counter(str(len(sample.images)) for sample in samples),
    }
    return {name: dict(count.most_common()) for name, count in kinds.items()}


def _lengths(samples: Sequence[Sample]) -> dict[str, float]:
    words = [len(text.split()) for sample in samples for text in sample.said("gpt")]
    marks = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}
    return {name: float(np.quantile(words, mark)) for name, mark in marks.items()} if words else {}


def _pictures(found: CheckUp, samples: Sequence[Sample], images: Path | None) -> dict[str, str]:
    """Look at every picture once; return the hash of its bytes by name, "" where it cannot be read."""
    users: dict[str, list[int]] = {}
    for sample in samples:
        for name in sample.images:
            if images is not None or isinstance(name, Picture):
                users.setdefault(name, []).append(sample.uid)
            else:
                found.not_looked_at += 1
    folder = images or Path()  # of none of them
    seen: dict[str, Seen] = {}

    def look(name: str) -> tuple[str | None, str]:
        try:
            picture, digest = load_image(folder, name), image_digest(folder, name)
            fault = "" if isinstance(name, InPool) else _extension_fault(name, find_image(folder, name))
        except FileNotFoundError as reason:
            return f"missing: {reason}", ""
        except (ValueError, OSError) as reason:
            return str(reason), ""
        seen[name] = Seen(digest, fault, Look(picture))
        return None, digest

    problems, _ = look_at_images(lambda: users, look, "looking at pictures")
    for name, problem in problems.items():
        kind = "missing picture" if problem.startswith("missing: ") else "broken picture"
        found.faults[kind].update(dict.fromkeys(users[name], problem.removeprefix("missing: ")))
    for name, one in seen.items():
        if one.fault:
            found.faults["extension disagrees"].update(dict.fromkeys(users[name], one.fault))
    _same_pictures(found, users, seen)
    return {name: seen[name].digest if name in seen else "" for name in users}


def _extension_fault(name: str, path: Path) -> str:
    """Say that a file is not what the path in the data says, "" when it is."""
    with Image.open(path, formats=FORMATS) as image:
        kind = str(image.format)
    suffix = Path(name).suffix.lower()
    return "" if suffix in SUFFIXES.get(kind, ()) else f"{name} is a {kind} file"


def _same_pictures(found: CheckUp, users: dict[str, list[int]], seen: dict[str, Seen]) -> None:
    names = list(users)
    known = [name for name in names if name in seen]
    twins: dict[str, str] = {}
    for same in groups(seen[name].digest for name in known):
        twins |= dict.fromkeys((known[place] for place in same[1:]), known[same[0]])
    for name, first in twins.items():
        found.faults["same picture twice"].update(dict.fromkeys(users[name], f"{name} has the bytes of {first}"))
    single = [name for name in known if name not in twins]
    for one, other in similar_pictures([seen[name].look for name in single]):
        why = f"{single[other]} looks like {single[one]}"
        found.faults["near-duplicate picture"].update(dict.fromkeys(users[single[other]], why))


def _texts(found: CheckUp, samples: Sequence[Sample], digests: dict[str, str]) -> None:
    about = [tuple(digests.get(name) or name for name in sample.images) for sample in samples]
    texts = [plain_text(" ".join(turn.text for turn in sample.turns)) for sample in samples]
    exact: set[int] = set()
    whole = (
        (own, tuple(turn.text.strip() for turn in sample.turns)) for own, sample in zip(about, samples, strict=True)
    )
    for same in groups(whole):
        for place in same[1:]:
            exact.add(place)
            found.faults["exact duplicate"][samples[place].uid] = f"the same as sample {samples[same[0]].uid}"
    rest = [place for place in range(len(samples)) if place not in exact]
    words = [texts[place] for place in rest]
    for first, other in similar_texts(words, [about[place] for place in rest]):
        why = f"nearly the text of sample {samples[rest[first]].uid}"
        found.faults["near-duplicate text"][samples[rest[other]].uid] = why
