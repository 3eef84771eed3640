"""Samples as a model reads them, by position: encoded with their pictures, ready for the model's `collate`.

    item(position) = what the subject's `encode` makes of a sample; for a vision-language model token ids with -200
                     where a picture stands, labels, and the pictures or their features

Nothing is kept in memory but the samples and their lengths. `check` looks at every sample and every picture before
work begins, and says which samples cannot be used and why; the others keep their positions and uids. Of a large pool
`candidates` are known much earlier, and `lengths_of` some when their turn comes.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from vlmsel import processes, progress
from vlmsel.data.batches import Item
from vlmsel.data.encoding import IGNORED, LossOn, generation_ids
from vlmsel.data.features import FeatureReader
from vlmsel.data.formats.pool import Samples, needs_folder
from vlmsel.data.images import Opener, require_folder
from vlmsel.data.kept import Found, kept, large
from vlmsel.data.sample import Sample, Turn
from vlmsel.data.sizes import Sizes, distinct

WHOLE = sys.maxsize  # as `max_length`: all of a sample


@dataclass(frozen=True)
class Reading:
    """How the samples of one file are read.

    Attributes:
        images: what image paths are relative to; needed when a sample has an image that the model can see.
        max_length: longest sequence in tokens, pictures' places included; what is longer is cut. `WHOLE` cuts nothing,
            not even at the model's own positions: for counting, not for running it.
        loss_on: what is supervised, answers or all text.
        features: gives the features of pictures in their place.
        allow_missing: go on where many pictures are missing.
    """

    images: Path | None = None
    max_length: int = 2048
    loss_on: LossOn = "answers"
    features: FeatureReader | None = None
    allow_missing: bool = False


class Size(NamedTuple):
    """A sample's tokens, pictures' places included, and how many of them its loss is taken on."""

    tokens: int
    supervised: int


class Reader(Protocol):
    """What a data set asks of a model; every `vlmsel.models.subject.Subject` is one."""

    def encode(self, sample: Sample, reading: Reading) -> Any:
        """Encode a sample with its pictures."""

    def size(self, sample: Sample, reading: Reading) -> Size:
        """Return the tokens that a sample takes, without reading pictures."""

    def pictures(self, reading: Reading) -> Opener | None:
        """Return what reads a sample's pictures; None for a model that reads text only."""


class SampleDataset(Dataset[Any]):
    """The samples of a file by position; `uids[position]` is the uid.

    Args:
        samples: what `read_samples` gave, or a part of it.
        subject: the model that reads them.
        reading: how.
        key: all that the samples' sizes depend on beside pictures, by which they are kept; None where it is not known.
        pool: the hash of the file that the samples are of, by which what is found about their pictures is kept.

    Raises:
        FileNotFoundError: samples have images and there is no image folder.
        ValueError: samples have images and no folder is named.
    """

    def __init__(
        self, samples: Sequence[Sample], subject: Reader, reading: Reading, key: Any = None, pool: str | None = None
    ) -> None:
        self.samples, self.subject, self.reading, self.key, self.pool = samples, subject, reading, key, pool
        self.pictures = subject.pictures(reading)
        if self.pictures is not None and (count := _placeless(samples)):
            if reading.images is None:
                raise ValueError(f"{count} of {len(samples)} samples have images; name their folder (--images DIR)")
            require_folder(reading.images)
        self._sizes = Sizes(self._look, len(samples), self._sizes_key)
        self._usable: list[int] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Any:
        """Encode one sample.

        Raises:
            ValueError: it cannot be used; names its uid and the reason.
        """
        sample = self.samples[position]
        try:
            return self.subject.encode(sample, self.reading)
        except (ValueError, OSError) as reason:
            raise ValueError(f"sample {sample.uid}: {reason}") from None

    @property
    def uids(self) -> list[int]:
        """The uid at each position."""
        if isinstance(self.samples, Samples):
            return self.samples.uids.tolist()
        return [sample.uid for sample in self.samples]

    @property
    def sources(self) -> list[str]:
        """The source of each sample, by position."""
        if isinstance(self.samples, Samples):
            return self.samples.sources
        return [sample.source for sample in self.samples]

    def images(self) -> np.ndarray:
        """Return how many images each sample has. [n]"""
        if isinstance(self.samples, Samples):
            return self.samples.images
        return np.array([len(sample.images) for sample in self.samples], dtype=np.int32)

    @property
    def large(self) -> bool:
        """Whether work may begin before every sample was encoded."""
        return large(len(self.samples))

    def check(self) -> dict[int, str]:
        """Encode every sample and decode every picture once; say by uid why samples cannot be used, in their order.

        Several processes deal the work among them, and of a large pool what they find is kept.
        """
        reasons = {**self._sizes.all()[1], **self._broken}
        self._usable = [position for position in range(len(self.samples)) if position not in reasons]
        return self._by_uid(reasons)

    def check_pictures(self) -> dict[int, str]:
        """Decode every picture once; say by uid which samples' cannot be used, in their order."""
        return self._by_uid(self._broken)

    def _by_uid(self, reasons: Mapping[int, str]) -> dict[int, str]:
        return {self.samples[position].uid: reasons[position] for position in sorted(reasons)}

    def _sizes_key(self) -> Any:
        """Return all that sizes depend on: places of pictures may depend on their sizes, and so on their bytes."""
        return None if self.key is None else (self.key, self._pictures[1])

    def _look(self, position: int) -> tuple[Size, str]:
        try:
            return self.subject.size(self.samples[position], self.reading), ""
        except ValueError as error:
            return Size(0, 0), str(error)

    def usable(self) -> list[int]:
        """Return the positions of samples without a problem, checking them if that was not done."""
        if self._usable is None:
            self.check()
        assert self._usable is not None
        return self._usable

    def candidates(self) -> Sequence[int]:
        """Return `usable`, or of a large pool the positions of all samples whose pictures are as they should be."""
        if not self.large:
            return self.usable()
        broken, every = self._broken, range(len(self.samples))
        return [position for position in every if position not in broken] if broken else every

    def lengths_of(self, positions: Sequence[int]) -> dict[int, int]:
        """Return the tokens of those samples at some candidates' positions that can be encoded, in their order."""
        sizes, reasons = self._sizes.at(positions)
        pairs = zip(positions, sizes[:, 0].tolist(), strict=True)
        return {position: tokens for position, tokens in pairs if position not in reasons}

    def pictures_digest(self) -> str:
        """Return the hash of all pictures' bytes, checking them if that was not done; "" for a model without."""
        return self._pictures[1]

    def lengths(self) -> list[int]:
        """Return the tokens of each sample by position, pictures' places included; 0 where encoding fails."""
        return self._sizes.all()[0][:, 0].tolist()

    def sizes(self) -> np.ndarray:
        """Return the size of each sample by position, as in `Size`; 0 where encoding fails. [n, 2]"""
        return self._sizes.all()[0]

    def signed_lengths(self) -> list[int]:
        """Return `lengths`, negative for samples without an image, as `modality_length_order` wants them."""
        pairs = zip(self.images().tolist(), self.lengths(), strict=True)
        return [length if images else -length for images, length in pairs]

    def _image_names(self) -> Iterator[str]:
        """Give the images of all samples, reading those alone that have any."""
        for position in np.flatnonzero(self.images()).tolist():
            yield from self.samples[position].images

    @cached_property
    def _broken(self) -> dict[int, str]:
        """Why samples' pictures cannot be used, by position."""
        broken, reasons = self._pictures[0], {}
        for position in np.flatnonzero(self.images()).tolist() if broken else ():
            images = self.samples[position].images
            if reason := next((broken[image] for image in images if image in broken), None):
                reasons[position] = reason
        return reasons

    @cached_property
    def _pictures(self) -> tuple[dict[str, str], str]:
        """Why some pictures cannot be used, by path, and the hash of all their bytes."""
        found = kept(int(self.images().sum()), self._pictures_key(), self._look_at_pictures)
        return dict(found.about["problems"]), found.about["digest"]

    def _pictures_key(self) -> Any:
        """Return what tells from the last start whether a picture has changed, without opening any; None: look anew."""
        if self.pictures is None or self.pool is None or not large(int(self.images().sum())):
            return None
        stamp = self.pictures.stamp
        stamps = look_at_images(self._image_names, lambda name: (None, stamp(name)), "finding images")[1]
        return "pictures", self.pool, self.pictures.exif, self.reading.features is not None, stamps

    def _look_at_pictures(self) -> Found:
        """Decode every distinct picture."""
        problems: dict[str, str] = {}
        total = ""
        if self.pictures is not None:
            problem, digest = self.pictures.problem, self.pictures.digest
            problems, total = look_at_images(
                self._image_names, lambda name: (problem(name), digest(name)), "checking images"
            )
        return Found({}, {"problems": sorted(problems.items()), "digest": total})


def _placeless(samples: Sequence[Sample]) -> int:
    """Count the samples that need an image folder."""
    return samples.placeless if isinstance(samples, Samples) else sum(map(needs_folder, samples))


def look_at_images(
    names: Callable[[], Iterable[str]], look: Callable[[str], tuple[str | None, str]], what: str
) -> tuple[dict[str, str], str]:
    """Look at every distinct image once, in threads (Pillow and hashing work outside Python's lock).

    Several processes deal the work among them.

    Args:
        names: gives the images, as samples name them; twice the same.
        look: says what is wrong with an image, if anything, and gives the hash of its bytes.
        what: the text of the progress bar.

    Returns:
        What is wrong by name, and a hash of all names and bytes, whatever their order.
    """
    count, every = distinct(names)
    own = islice(every, processes.rank(), None, processes.count())
    problems, total = {}, 0
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        looks = pool.imap(lambda name: (name, *look(name)), own, chunksize=16)
        for name, problem, digest in shown(looks, what, "image", count // processes.count()):
            if problem:
                problems[name] = problem
            part = hashlib.sha256(f"{name}\0{digest}".encode(errors="surrogatepass")).digest()
            total += int.from_bytes(part, "big")
    parts = processes.gather((problems, total))
    return {name: problem for part, _ in parts for name, problem in part.items()}, f"{sum(one for _, one in parts):x}"


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes questions for generation with the template that training used; nothing is supervised."""

    tokenizer: Any
    template: str
    pictures: Callable[[str], Tensor]

    def __call__(self, uid: int, turns: Sequence[Turn], images: Sequence[str] = ()) -> Item:
        """Encode turns that end in a question, up to where the answer begins.

        Raises:
            FileNotFoundError, ValueError: a picture is missing or broken, or the turns are no prompt.
        """
        ids = generation_ids(turns, len(images), self.tokenizer, self.template)
        return Item(uid, ids, [IGNORED] * len(ids), tuple(images), tuple(self.pictures(image) for image in images))


def shown(values: Iterable[Any], what: str, unit: str, total: int | None = None) -> Iterable[Any]:
    """Show a progress bar when it takes more than two seconds."""
    return progress.bar(what, total, unit, values=values)
