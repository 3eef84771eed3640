"""Samples as a model reads them: encoded turns with their pictures, by position, ready for a `Collator`.

    item(position) = token ids with -200 where a picture stands, labels, and the pictures [3, S, S] as bytes, or their
                     features [patches, width] where a folder of them is given: then no picture is opened

Nothing is kept in memory but the samples and their lengths. `check` looks at every sample and every picture before
work begins, and says which samples cannot be used and why; the others keep their positions and uids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from vlmsel import processes
from vlmsel.data.batches import Item
from vlmsel.data.encoding import IGNORED, Encoded, LossOn, encode, generation_ids
from vlmsel.data.features import FeatureReader
from vlmsel.data.formats.llava import Problem
from vlmsel.data.images import CLIP_MEAN, load_image, require_folder, require_mode, square
from vlmsel.data.sample import Sample, Turn
from vlmsel.data.templates import find_template


@dataclass(frozen=True)
class Pictures:
    """Reads pictures of one folder as a vision tower wants them, or what the tower made of them."""

    folder: Path
    size: int
    mode: str
    mean: tuple[float, ...] = CLIP_MEAN
    features: FeatureReader | None = None

    def __call__(self, relative: str) -> Tensor:
        """Return a picture as uint8 [3, size, size], or its features [patches, width] when there is a folder of them.

        Raises:
            FileNotFoundError, ValueError: it is missing or cannot be used, or it should have features and has none.
        """
        if self.features is not None and relative in self.features:
            return self.features(relative)
        return square(self._open(relative), self.size, self.mode, self.mean)

    def _open(self, relative: str) -> Image.Image:
        image = load_image(self.folder, relative)
        if self.features is not None:
            raise ValueError(
                f"image {relative!r} has no features in {self.features.folder}; run again, which adds them"
            )
        return image

    def problem(self, relative: str) -> str | None:
        """Say why a picture cannot be used, None when it can, which one with features has shown already."""
        if self.features is not None and relative in self.features:
            return None
        try:
            self._open(relative)
        except (ValueError, OSError) as reason:
            return str(reason)
        return None


class SampleDataset(Dataset[Item]):
    """The samples of a file by position; `uids[position]` is the uid.

    Args:
        samples: what `read_samples` gave, or a part of it.
        image_folder: what image paths are relative to; needed when a sample has an image that the model can see.
        tokenizer: a Hugging Face tokenizer.
        template: name of the conversation template.
        size: side of the square a picture is brought to, in pixels; None for a model that reads text only, to which a
            sample with an image is of no use.
        mode: how it gets there, one of `images.MODES`.
        image_tokens: places a picture takes in the sequence.
        max_length: longest sequence, pictures' places included; what is longer is cut.
        mean: the tower's channel means, which pictures are padded with.
        features: gives the features of pictures in their place.
        loss_on: what is supervised, answers or all text.

    Raises:
        FileNotFoundError: samples have images and there is no image folder.
        ValueError: there is no such template or mode, or samples have images and no folder is named.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        image_folder: str | Path | None,
        tokenizer: Any,
        template: str,
        *,
        size: int | None,
        mode: str,
        image_tokens: int,
        max_length: int = 2048,
        mean: Sequence[float] = CLIP_MEAN,
        features: FeatureReader | None = None,
        loss_on: LossOn = "answers",
    ) -> None:
        self.samples = samples
        self.pictures = None
        if size is not None:
            folder = _need_folder(image_folder, samples)
            self.pictures = Pictures(folder, size, require_mode(mode), tuple(mean), features)
        self.loss_on = loss_on
        self.tokenizer, self.template = tokenizer, find_template(template)
        self.image_tokens, self.max_length = image_tokens, max_length
        self._lengths: list[int] | None = None
        self._usable: list[int] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Item:
        """Encode one sample.

        Raises:
            ValueError: it cannot be used; names its uid and the reason.
        """
        sample = self.samples[position]
        try:
            encoded = self.encode(sample)
            pixels = tuple(self.pictures(image) for image in sample.images) if self.pictures else ()
        except (ValueError, OSError) as reason:
            raise ValueError(f"sample {sample.uid}: {reason}") from None
        return Item(sample.uid, encoded.input_ids, encoded.labels, sample.images, pixels)

    @property
    def uids(self) -> list[int]:
        """The uid at each position."""
        return [sample.uid for sample in self.samples]

    def encode(self, sample: Sample) -> Encoded:
        """Encode a sample's turns.

        Raises:
            ValueError: nothing supervised is left, markers and images differ in number, or the model reads text only
                and there is an image.
        """
        if sample.images and self.pictures is None:
            raise ValueError("it has an image and this model reads text only")
        return encode(
            sample.turns,
            len(sample.images),
            self.tokenizer,
            self.template,
            max_length=self.max_length,
            image_tokens=self.image_tokens,
            loss_on=self.loss_on,
        )

    def check(self) -> list[Problem]:
        """Encode every sample and decode every picture once; return one problem per unusable sample, by position.

        Several processes deal the work among them.
        """
        broken = self._broken_images()
        dealt = range(processes.rank(), len(self.samples), processes.count())
        own = [(i, *self._look(self.samples[i], broken)) for i in _shown(dealt, "checking samples", "sample")]
        found = sorted(one for part in processes.gather(own) for one in part)
        self._lengths = [length for _, length, _ in found]
        self._usable = [position for position, _, reason in found if not reason]
        return [Problem(self.samples[position].uid, reason) for position, _, reason in found if reason]

    def _look(self, sample: Sample, broken: Mapping[str, str]) -> tuple[int, str]:
        """Return a sample's length, 0 where it cannot be encoded, and why it cannot be used, "" when it can."""
        reason = next((broken[image] for image in sample.images if image in broken), "")
        try:
            return self.encode(sample).positions(self.image_tokens), reason
        except ValueError as error:
            return 0, reason or str(error)

    def usable(self) -> list[int]:
        """Return the positions of samples without a problem, checking them if that was not done."""
        if self._usable is None:
            self.check()
        assert self._usable is not None
        return self._usable

    def lengths(self) -> list[int]:
        """Return the tokens of each sample by position, pictures' places included; 0 where encoding fails."""
        if self._lengths is None:
            self._lengths = [self._try_length(s) for s in _shown(self.samples, "measuring samples", "sample")]
        return self._lengths

    def signed_lengths(self) -> list[int]:
        """Return `lengths`, negative for samples without an image, as `modality_length_order` wants them."""
        pairs = zip(self.samples, self.lengths(), strict=True)
        return [length if sample.images else -length for sample, length in pairs]

    def _try_length(self, sample: Sample) -> int:
        try:
            return self.encode(sample).positions(self.image_tokens)
        except ValueError:
            return 0

    def _broken_images(self) -> dict[str, str]:
        """Decode every distinct picture, in threads (Pillow works outside Python's lock); return reasons by path."""
        if self.pictures is None:
            return {}
        names = list(dict.fromkeys(image for sample in self.samples for image in sample.images))
        own = names[processes.rank() :: processes.count()]
        with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
            reasons = pool.imap(self.pictures.problem, own, chunksize=16)
            found = list(_shown(reasons, "checking images", "image", len(own)))
        broken = {name: reason for name, reason in zip(own, found, strict=True) if reason}
        return {name: reason for part in processes.gather(broken) for name, reason in part.items()}


def _need_folder(folder: str | Path | None, samples: Sequence[Sample]) -> Path:
    """Return the image folder, which must be there when samples have images."""
    if count := sum(bool(sample.images) for sample in samples):
        if folder is None:
            raise ValueError(f"{count} of {len(samples)} samples have images; name their folder (--images DIR)")
        require_folder(folder)
    return Path(folder or "")


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


def _shown(values: Iterable[Any], what: str, unit: str, total: int | None = None) -> Iterable[Any]:
    """Show a progress bar when it takes more than two seconds."""
    quiet = not processes.is_main()
    return tqdm(values, desc=what, unit=unit, total=total, delay=2, dynamic_ncols=True, disable=quiet)
