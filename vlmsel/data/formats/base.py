"""What a form of pool is, and what all forms share: the checks that a sample goes through, whatever file it came in."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from vlmsel import runs
from vlmsel.checks import quoted
from vlmsel.data.formats.pictures import Picture
from vlmsel.data.rows import kind_of
from vlmsel.data.sample import Sample, Turn
from vlmsel.data.templates import IMAGE

ROLES = ("human", "gpt")
_KNOWN_SOURCE = re.compile(r"(ocr_vqa|textvqa|coco|gqa|vg)(?![a-z])")


class Form(ABC):
    """How the records of a pool lie in a file and become samples.

    Records stay as they are read, with all that they hold, so that a selection can be written in the form it came in.
    """

    name: str

    @abstractmethod
    def claims(self, path: Path) -> bool:
        """Tell by its name, or by its content where it exists, whether a file is of this form."""

    @abstractmethod
    def read(self, path: Path) -> Sequence[Any]:
        """Read the records of a file, unchecked; the position of a record is its uid.

        A form for large pools gives a sequence that reads a record when it is asked for and can be pickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file as a whole cannot be read; names it.
        """

    @abstractmethod
    def write(self, path: Path, records: Iterable[Any]) -> None:
        """Write records as `read` gave them; a killed process leaves the old file or the new one."""

    @abstractmethod
    def parse(self, uid: int, record: Any) -> Sample:
        """Make a sample of a record, by `checked_sample`.

        Raises:
            ValueError: the record cannot be used; the message says why, without naming the record.
        """

    def glance(self, record: Any) -> tuple[str, int, int] | None:
        """Return what `parse` finds of a plain record, its source, the number of its images, which all lie in the
        image folder, and its `key_of`; None where only `parse` can tell."""
        return None

    def fits(self, path: Path) -> bool:
        """Tell whether a choice may be written under this name."""
        return self.claims(path)

    def write_part(self, path: Path, pool: Path, uids: Sequence[int]) -> None:
        """Write some records of a pool, in this order."""
        records = self.read(pool)
        self.write(path, (records[uid] for uid in uids))

    def digest(self, path: Path) -> str:
        """Return a hash of all that the records of a pool are read from, but for pictures' own files."""
        return runs.file_hash(path)


def checked_sample(
    uid: int, turns: Sequence[Turn], images: Sequence[str] = (), source: Any = None, weight: Any = None
) -> Sample:
    """Make a sample of what a record holds.

    As in LLaVA (arXiv 2304.08485) an opening turn of the assistant is dropped and turns must alternate after it. A
    system turn may come before all others; one without text is none.

    Args:
        uid: position in the file.
        turns: who said what, with a marker for each image.
        images: paths relative to the image folder, or pictures that know where they lie.
        source: name of the data set; where it is no text, the first image's path tells.
        weight: how much the sample counts; None where the file does not say.

    Raises:
        ValueError: the record cannot be used; says why.
    """
    kept = _alternating(turns)
    for number, turn in enumerate(turns):
        _require_text(f"turn {number}", turn.text)
    for path in images:
        _require_text("image path", path)
        if not isinstance(path, Picture) and (problem := path_problem(path)):
            raise ValueError(problem)
    markers = sum(turn.text.count(IMAGE) for turn in kept)
    if markers != len(images):
        raise ValueError(f"{markers} {IMAGE} markers for {len(images)} images; the two numbers must be equal")
    return Sample(uid, source_of(source, images), tuple(images), kept, _checked_weight(weight))


def source_of(given: Any, images: Sequence[str]) -> str:
    """Name the data set a sample came from: what the record says, else what the path of its first image tells.

    >>> source_of(None, ["coco/train2017/000000033471.jpg"]), source_of(None, ["VG_100K/2.jpg"]), source_of(None, [])
    ('coco', 'vg', 'text')
    >>> source_of(None, ["charts/12.png"]), source_of(None, ["12.png"]), source_of("mine", ["coco/1.jpg"])
    ('charts', 'images', 'mine')
    """
    if isinstance(given, str) and given:
        return given
    if not images:
        return "text"
    path = PurePosixPath(images[0].named if isinstance(images[0], Picture) else images[0])
    if known := _KNOWN_SOURCE.match(str(path).lower()):
        return known.group(1)
    return path.parts[0] if len(path.parts) > 1 else "images"


def key_of(images: Sequence[str], said: str) -> int:
    """Return a number of 63 bits that samples share which show and say the same: paths of images and all turns' texts,
    a line each, without markers.

    >>> key_of(["a"], "<image>\\nWhat?\\nred") == key_of(["a"], "What?\\nred"), key_of([], "a") == key_of([], "b")
    (True, False)
    """
    bare = said.replace(f"{IMAGE}\n", "").replace(IMAGE, "").strip()
    text = "\0".join((*images, bare)).encode(errors="surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") >> 1


def path_problem(path: str) -> str | None:
    """Say why an image path of an untrusted file must not be opened, None when it may lead into the image folder.

    >>> path_problem("../secret.png")
    "image path '../secret.png' leaves the image folder; give paths relative to it and without '..'"
    """
    if "\0" in path or not path.strip():
        return f"image path {quoted(path)} is not a path"
    if re.match(r"data:|[A-Za-z][\w+.-]+://", path):
        return f"image path {quoted(path)} is a picture or an address, not a file; put it into the image folder"
    steps = re.split(r"[\\/]", path)
    if path[0] in "\\/" or ".." in steps or re.match(r"[A-Za-z]:[\\/]", path):
        return f"image path {quoted(path)} leaves the image folder; give paths relative to it and without '..'"
    return None


def _alternating(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Drop an opening turn of the assistant and check that the others alternate, behind a system turn or not."""
    first = int(bool(turns) and turns[0].role == "system")
    system = tuple(turn for turn in turns[:first] if turn.text.strip())
    if any(IMAGE in turn.text for turn in system):
        raise ValueError(f"an {IMAGE} marker stands in the system turn; put it into a question")
    first += int(len(turns) > first and turns[first].role == "gpt")
    kept = turns[first:]
    if not any(turn.role == "gpt" for turn in kept):
        raise ValueError("no turn from 'gpt' that answers a human, so that there is nothing to learn")
    for number, turn in enumerate(kept, first):
        if turn.role == "system":
            raise ValueError(f"turn {number} is from 'system', which only the first may be")
        if turn.role != (expected := ROLES[(number - first) % 2]):
            raise ValueError(f"turn {number} is from {turn.role!r}, expected {expected!r}: turns must alternate")
    return system + tuple(kept)


def _checked_weight(weight: Any) -> float | None:
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ValueError(f"the weight must be a number, got {kind_of(weight)}")
    if not 0 < weight <= sys.float_info.max:
        raise ValueError(f"the weight must be a positive number, got {str(weight)[:40]}")
    return float(weight)


def _require_text(what: str, text: str) -> None:
    """Refuse lone surrogates, which JSON can hold and neither a tokenizer nor a file system takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what}: the text holds half of a surrogate pair; mend its encoding") from None
