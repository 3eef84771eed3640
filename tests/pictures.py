"""What can be said of a picture without looking at it: its size, that it is not blank, and the colours in it."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image


def pixels(path: Path) -> np.ndarray:
    """Return a picture's colours. [height, width, 3]"""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def count(picture: np.ndarray, color: Any) -> int:
    """Count a picture's pixels of one of matplotlib's colours."""
    wanted = np.round(255 * np.array(to_rgb(color))).astype(int)
    return int((np.abs(picture.astype(int) - wanted).max(axis=-1) <= 3).sum())


def has(picture: np.ndarray, color: Any) -> bool:
    """Tell whether enough of a picture for a line or a dot is of a colour."""
    return count(picture, color) > 20
