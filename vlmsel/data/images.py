"""Images: opened from an untrusted list of paths and brought to a square, resized bicubically by Pillow.

They stay bytes; the vision tower normalises a whole batch of them at once, on its own device.

Ways to a square of `size` pixels:

    pad        expand to a square filled with the mean colour, then resize (LLaVA-1.5: tuning and evaluation)
    crop       resize the shorter edge, cut out the centre (CLIP; LLaVA-1.5: alignment)
    squash     resize both edges, proportions lost (Prismatic's resize-naive)
    letterbox  pad both sides equally, one pixel short of a square when the difference is odd, then crop (Prismatic)

As in LLaVA, transparency is dropped, an animation is its first frame, and EXIF orientation is ignored (but in TIFF,
which Pillow turns itself) unless the model says otherwise (`VLMConfig.exif`). Unlike there, 16-bit grey is scaled by
the range of its format, as 16-bit colour is, instead of turning white; pictures whose white no format says, and those
that would fill the memory, are refused, and so is every path in the data that climbs out of the image folder. Links in
the folder are its owner's and are followed wherever they lead.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from vlmsel import runs
from vlmsel.checks import check_choice, quoted
from vlmsel.data.features import FeatureReader
from vlmsel.data.formats.base import path_problem
from vlmsel.data.formats.pictures import InFolder, InPool

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
MODES = ("pad", "crop", "squash", "letterbox")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".JPG", ".JPEG", ".PNG")
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "PPM", "TIFF")  # no format whose reader runs a program
GONE = "is missing in"  # what is said of a picture that is not there, between its name and the folder
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
MAX_SIDE = 16_384  # padding makes a square of the longer side
MAX_RATIO = 200  # cropping enlarges the longer side by the same factor as the shorter one


def require_folder(folder: str | Path) -> Path:
    """Return the image folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
        what = "a file, no image folder" if Path(folder).is_file() else "no such image folder"
        raise FileNotFoundError(f"{folder}: {what}; give the one that image paths are relative to")
    return Path(folder)


def find_image(folder: str | Path, relative: str) -> Path:
    """Return the file that `relative` names in `folder`, or the one that differs in its extension only.

    Public mixes list OCR-VQA pictures as .jpg that come as .gif or .png.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path climbs out of the folder.
    """
    if isinstance(relative, InFolder):
        folder, relative = relative.folder, relative.named
    if problem := path_problem(relative):
        raise ValueError(problem)
    found = next((name for name in _names(relative) if os.path.isfile(os.path.join(folder, name))), None)
    if found is None:
        raise FileNotFoundError(f"image {quoted(relative)} {GONE} {folder}")
    return Path(os.path.realpath(os.path.join(folder, found)))


def _names(relative: str) -> Iterator[str]:
    """Give a path as it is written, then with other extensions."""
    yield relative
    stem = str(PurePosixPath(relative).with_suffix("")) if PurePosixPath(relative).name else relative
    yield from (stem + extension for extension in EXTENSIONS)


def _file(folder: str | Path, relative: str) -> Path | io.BytesIO:
    """Return what holds an image: its file, or its bytes where they stand in the pool."""
    return io.BytesIO(relative.content()) if isinstance(relative, InPool) else find_image(folder, relative)


def load_image(folder: str | Path, relative: str, exif: bool = False) -> Image.Image:
    """Open an image of `folder`, or one that knows where it lies, as RGB, decoded to its last pixel.

    `exif` turns it as its orientation tag says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the path leads out of the folder, or the file is broken, too large or of a format not read.
    """
    path = _file(folder, relative)
    try:
        with Image.open(path, formats=FORMATS) as image:
            problem = size_problem(*image.size)
            if problem is None:
                image.load()
                image.info.pop("transparency", None)
                if exif:
                    ImageOps.exif_transpose(image, in_place=True)
                return _eight_bits(image).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        problem = f"has more than {MAX_PIXELS} pixels"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise errors of many kinds on broken files
        raise ValueError(f"image {quoted(relative)} cannot be read: {_first_line(error, path, relative)}") from None
    raise ValueError(f"image {quoted(relative)} {problem}, more than is safe to load; shrink it")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring grey of more than 8 bits to 8 of them, the high ones, as Pillow does in colour; leave others as they are.

    Raises:
        ValueError: the pixels are 32-bit numbers of which the format does not say what is white.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    tags = getattr(image, "tag_v2", {})  # TIFF's
    if image.mode == "I" and image.format in ("PPM", "PNG"):
        bits = 16  # Pillow has scaled them to 65535
    elif image.mode.startswith("I;16"):
        bits = max(tags.get(ExifTags.Base.BitsPerSample, (16,)))
    else:
        raise ValueError("its pixels are numbers, and nothing says which of them is white; save it with 8 or 16 bits")
    grey = (np.asarray(image).astype(np.int64) >> (bits - 8)).clip(0, 255).astype(np.uint8)
    inverted = tags.get(ExifTags.Base.PhotometricInterpretation) == 0  # which Pillow heeds in 8 bits only
    return Image.fromarray(255 - grey if inverted else grey)


def image_digest(folder: str | Path, relative: str) -> str:
    """Return the SHA-256 of an image's bytes, "" where they cannot be read."""
    try:
        if isinstance(relative, InPool):
            return hashlib.sha256(relative.content()).hexdigest()
        return runs.file_hash(find_image(folder, relative))
    except (ValueError, OSError):
        return ""


def size_problem(width: int, height: int) -> str | None:
    """Say why an image of this size would fill the memory on its way to a square, None when it would not."""
    longer, shorter = max(width, height), min(width, height)
    if width * height > MAX_PIXELS:
        return f"has {width} x {height} pixels (at most {MAX_PIXELS})"
    if longer > MAX_SIDE:
        return f"is {longer} pixels long (at most {MAX_SIDE})"
    if longer > MAX_RATIO * shorter:
        return f"is {width} x {height} pixels, a ratio above {MAX_RATIO}"
    return None


class Opener:
    """Opens the pictures of one folder, tells their bytes apart, and says which cannot be used."""

    folder: Path
    exif: bool

    def digest(self, relative: str) -> str:
        """Return the hash of a picture's bytes, "" where there is no file."""
        return image_digest(self.folder, relative)

    def stamp(self, relative: str) -> str:
        """Return what changes with a picture's file, without opening it; "" where its bytes stand in the pool."""
        if isinstance(relative, InPool):
            return ""
        try:
            path = find_image(self.folder, relative)
            about = path.stat()
        except (ValueError, OSError) as reason:
            return str(reason)
        return f"{path} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"

    def problem(self, relative: str) -> str | None:
        """Say why a picture cannot be used, None when it can."""
        try:
            load_image(self.folder, relative, self.exif)
        except (ValueError, OSError) as reason:
            return str(reason)
        return None


@dataclass(frozen=True)
class Photos(Opener):
    """Opens pictures as they are, for a model whose processor does the rest; fields as for `Pictures`."""

    folder: Path
    exif: bool = False

    def __call__(self, relative: str) -> Image.Image:
        """Return a picture as RGB.

        Raises:
            FileNotFoundError, ValueError: it is missing or cannot be used.
        """
        return load_image(self.folder, relative, self.exif)

    def size(self, relative: str) -> tuple[int, int]:
        """Return a picture's width and height, from its header where that tells them.

        Raises:
            FileNotFoundError, ValueError: as for opening it.
        """
        path = _file(self.folder, relative)
        with suppress(Exception), Image.open(path, formats=FORMATS) as image:  # what is wrong is said below
            if image.format != "TIFF":  # which Pillow turns when it reads it
                turned = self.exif and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                return (image.height, image.width) if turned else image.size
        return self(relative).size


@dataclass(frozen=True)
class Pictures(Opener):
    """Reads pictures of one folder as a vision tower wants them, or what the tower made of them.

    Attributes:
        folder: what their paths are relative to.
        size: side of the square they are brought to, in pixels.
        mode: how they get there, one of `MODES`.
        mean: the tower's channel means, which they are padded with.
        features: gives the features of pictures in their place.
        exif: turn pictures as their orientation tags say.

    Raises:
        ValueError: there is no such mode.
    """

    folder: Path
    size: int
    mode: str
    mean: tuple[float, ...] = CLIP_MEAN
    features: FeatureReader | None = None
    exif: bool = False

    def __post_init__(self) -> None:
        check_choice(MODES, image_mode=self.mode)

    def __call__(self, relative: str) -> Tensor:
        """Return a picture as uint8 [3, size, size], or its features [patches, width] when there is a folder of them.

        Raises:
            FileNotFoundError, ValueError: it is missing or cannot be used, or it should have features and has none.
        """
        if self.features is not None and relative in self.features:
            return self.features(relative)
        return square(self._open(relative), self.size, self.mode, self.mean)

    def _open(self, relative: str) -> Image.Image:
        image = load_image(self.folder, relative, self.exif)
        if self.features is not None:
            raise ValueError(
                f"image {quoted(relative)} has no features in {self.features.folder}; run again, which adds them"
            )
        return image

    def digest(self, relative: str) -> str:
        """Return the hash of a picture's bytes, "" where there is no file."""
        if self.features is not None and relative in self.features:
            return self.features.digests[relative]
        return super().digest(relative)

    def stamp(self, relative: str) -> str:
        """Return the hash of a picture's bytes where it has features, which tells more than its file."""
        if self.features is not None and relative in self.features:
            return self.features.digests[relative]
        return super().stamp(relative)

    def problem(self, relative: str) -> str | None:
        """Say why a picture cannot be used, None when it can, which one with features has shown already."""
        if self.features is not None and relative in self.features:
            return None
        try:
            self._open(relative)
        except (ValueError, OSError) as reason:
            return str(reason)
        return None


def square(image: Image.Image, size: int, mode: str, mean: Sequence[float] = CLIP_MEAN) -> Tensor:
    """Bring an RGB image to a square. -> uint8 [3, size, size]

    `mean` is the tower's channel means, the colour of padding.

    Raises:
        ValueError: there is no such mode.
    """
    check_choice(MODES, image_mode=mode)
    fill = tuple(int(channel * 255) for channel in mean)
    if mode == "pad":
        image = expand2square(image, fill)
    elif mode == "letterbox":
        image = letterbox(image, fill)
    small = _resize(image, size, size) if mode == "squash" else _crop(image, size)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def expand2square(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """Centre an image on a square of its longer side; an odd difference leaves one more line at the bottom or right."""
    side = max(image.size)
    return _paste(image, (side, side), ((side - image.width) // 2, (side - image.height) // 2), fill)


def letterbox(image: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """Pad by half the difference, rounded down, on both sides of the shorter edge."""
    left, top = ((max(image.size) - edge) // 2 for edge in image.size)
    return _paste(image, (image.width + 2 * left, image.height + 2 * top), (left, top), fill)


def _paste(image: Image.Image, size: tuple[int, int], corner: tuple[int, int], fill: tuple[int, ...]) -> Image.Image:
    if size == image.size:
        return image
    canvas = Image.new("RGB", size, fill)
    canvas.paste(image, corner)
    return canvas


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter edge to `size` and cut out the centre."""
    shorter, (width, height) = min(image.size), image.size
    image = _resize(image, int(size * width / shorter), int(size * height / shorter))
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _first_line(error: Exception, path: Path | io.BytesIO, relative: str) -> str:
    """Tell an error without the path, which has been named, and on one line."""
    shown = repr(path) if isinstance(path, io.BytesIO) else repr(str(path))
    text = str(error).replace(shown, quoted(relative)).strip()
    return text.splitlines()[0] if text else type(error).__name__
