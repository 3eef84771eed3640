"""Pictures that know where they lie: in the pool's own file, or in a folder that the pool names.

A `Picture` is a name like any other path of an image in a sample. No text in a data file can become one, only a form of
pool makes it, so that names which others wrote never lead out of the image folder.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path


class Picture(str):
    """The name of a picture that needs no image folder; it can be pickled.

    `named` is the path that its record gives it, by which its source is told; "" where there is none.
    """

    named: str = ""


class InPool(Picture):
    """A picture whose bytes stand in the pool's own file."""

    @abstractmethod
    def content(self) -> bytes:
        """Return its bytes.

        Raises:
            OSError, ValueError: they cannot be read.
        """


class InFolder(Picture):
    """A picture in a folder of its own pool: `named` is relative to `folder`, its text says both."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, relative: str) -> InFolder:
        """Name the picture `relative` in a folder."""
        picture = cls(f"{folder}/{relative}")
        picture.folder, picture.named = folder, relative
        return picture
