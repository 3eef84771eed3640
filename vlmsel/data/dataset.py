"""Samples as a model reads them, by position: encoded with their pictures, ready for the model's `collate`.

    item(position) = what the subject's `encode` makes of a sample; for a vision-language model token ids with -200
                     where a picture stands, labels, and the pictures or their features

Nothing is kept in memory but the samples and their lengths. `check` looks at every sample and every picture before
work begins, and says which samples cannot be used and why; the others keep their positions and uids.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vlmsel import processes
from vlmsel.data.batches import Item
from vlmsel.data.encoding import IGNORED, LossOn, generation_ids
from vlmsel.data.features import FeatureReader
from vlmsel.data.formats.pool import Samples, needs_folder
from vlmsel.data.images import Opener, require_folder
from vlmsel.data.sample import Sample, Turn


@dataclass(frozen=True)
class Reading:
    """How the samples of one file are read.

    Attributes:
        images: what image paths are relative to; needed when a sample has an image that the model can see.
        max_length: longest sequence in tokens, pictures' places included; what is longer is cut.
        loss_on: what is supervised, answers or all text.
        features: gives the features of pictures in their place.
    """

    images: Path | None = None
    max_length: int = 2048
    loss_on: LossOn = "answers"
    features: FeatureReader | None = None


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

    Raises:
        FileNotFoundError: samples have images and there is no image folder.
        ValueError: samples have images and no folder is named.
    """

    def __init__(self, samples: Sequence[Sample], subject: Reader, reading: Reading) -> None:
        self.samples, self.subject, self.reading = samples, subject, reading
        self.pictures = subject.pictures(reading)
        if self.pictures is not None and (count := _placeless(samples)):
            if reading.images is None:
                raise ValueError(f"{count} of {len(samples)} samples have images; name their folder (--images DIR)")
            require_folder(reading.images)
        self._pictures_digest = ""
        self._sizes: list[Size] | None = None
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

    def check(self) -> dict[int, str]:
        """Encode every sample and decode every picture once; say by uid why samples cannot be used, in their order.

        Several processes deal the work among them.
        """
        broken, self._pictures_digest = self._look_at_pictures()
        dealt = range(processes.rank(), len(self.samples), processes.count())
        own = [(i, *self._look(self.samples[i], broken)) for i in shown(dealt, "checking samples", "sample")]
        looks = sorted(look for part in processes.gather(own) for look in part)
        self._sizes = [size for _, size, _ in looks]
        self._usable = [position for position, _, reason in looks if not reason]
        return {self.samples[position].uid: reason for position, _, reason in looks if reason}

    def _look(self, sample: Sample, broken: Mapping[str, str]) -> tuple[Size, str]:
        """Return a sample's size, 0 where it cannot be encoded, and why it cannot be used, "" when it can."""
        reason = next((broken[image] for image in sample.images if image in broken), "")
        try:
            return self.subject.size(sample, self.reading), reason
        except ValueError as error:
            return Size(0, 0), reason or str(error)

    def usable(self) -> list[int]:
        """Return the positions of samples without a problem, checking them if that was not done."""
        if self._usable is None:
            self.check()
        assert self._usable is not None
        return self._usable

    def pictures_digest(self) -> str:
        """Return the hash of all pictures' bytes, checking them if that was not done; "" for a model without."""
        self.usable()
        return self._pictures_digest

    def lengths(self) -> list[int]:
        """Return the tokens of each sample by position, pictures' places included; 0 where encoding fails."""
        return [size.tokens for size in self.sizes()]

    def sizes(self) -> list[Size]:
        """Return the size of each sample by position; 0 where encoding fails."""
        if self._sizes is None:
            self._sizes = [self._look(s, {})[0] for s in shown(self.samples, "measuring samples", "sample")]
        return self._sizes

    def signed_lengths(self) -> list[int]:
        """Return `lengths`, negative for samples without an image, as `modality_length_order` wants them."""
        pairs = zip(self.images().tolist(), self.lengths(), strict=True)
        return [length if images else -length for images, length in pairs]

    def _look_at_pictures(self) -> tuple[dict[str, str], str]:
        """Decode every distinct picture; return why some cannot be used, by path, and the hash of all their bytes."""
        if self.pictures is None:
            return {}, ""
        problem, digest = self.pictures.problem, self.pictures.digest
        names = (image for sample in self.samples for image in sample.images)
        return look_at_images(names, lambda name: (problem(name), digest(name)), "checking images")


def _placeless(samples: Sequence[Sample]) -> int:
    """Count the samples that need an image folder."""
    return samples.placeless if isinstance(samples, Samples) else sum(map(needs_folder, samples))


def look_at_images(
    names: Iterable[str], look: Callable[[str], tuple[str | None, str]], what: str
) -> tuple[dict[str, str], str]:
    """Look at every distinct image once, in threads (Pillow and hashing work outside Python's lock).

    Several processes deal the work among them.

    Args:
        names: the images, as samples name them.
        look: says what is wrong with an image, if anything, and gives the hash of its bytes.
        what: the text of the progress bar.

    Returns:
        What is wrong by name, and a hash of all names and bytes, whatever their order.
    """
    distinct = list(dict.fromkeys(names))
    own = distinct[processes.rank() :: processes.count()]
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        looks = list(shown(pool.imap(look, own, chunksize=16), what, "image", len(own)))
    problems = {name: problem for name, (problem, _) in zip(own, looks, strict=True) if problem}
    total = sum(
        int.from_bytes(hashlib.sha256(f"{name}\0{digest}".encode(errors="surrogatepass")).digest(), "big")
        for name, (_, digest) in zip(own, looks, strict=True)
    )
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
    quiet = not processes.is_main()
    return tqdm(values, desc=what, unit=unit, total=total, delay=2, dynamic_ncols=True, disable=quiet)
