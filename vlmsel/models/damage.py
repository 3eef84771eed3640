"""Damaged model files (a copy that was cut off, a full disk) end in one line that names the file and the mend.

The libraries that read them raise errors of many kinds, most without the name of the file. Known files are looked at
first: of weights the header alone, which tells the length that the file must have, so that this costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vlmsel.runs import read_json

MEND = "it is damaged or was cut off; copy its whole folder again"
OBJECTS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "open_clip_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def check_folder(folder: Path) -> None:
    """Refuse a model folder that holds a damaged file.

    Raises:
        ValueError: names the file.
    """
    for file in sorted(folder.glob("*.safetensors")):
        check_weights(file)
    for name in OBJECTS:
        if (folder / name).is_file():
            read_object(folder / name)


def check_weights(file: Path) -> None:
    """Refuse a safetensors file whose header is broken or that has another length than the header says.

    Raises:
        ValueError: names the file.
    """
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as problem:
        raise ValueError(f"{file} cannot be read ({problem}): {MEND}") from None


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy the whole model folder, the weights in it belong together")
    check_weights(file)
    return load_file(file)


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds anything else; names the file.
    """
    try:
        content = read_json(file)
    except ValueError as problem:
        raise ValueError(f"{problem}: {MEND}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings: {MEND}")
    return content


@contextmanager
def loading(what: str, source: str) -> Iterator[None]:
    """Name the part that is being loaded in errors that libraries raise on files which do not fit each other.

    Raises:
        ValueError: in place of errors of any kind but the system's and those that say what is wrong themselves, and of
            one that goes on to list all kinds of models.
    """
    try:
        yield
    except (OSError, ValueError, ImportError, MemoryError) as problem:
        if found := re.match(
            r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", str(problem)
        ):  # and all others
            raise ValueError(
                f"{source}: {found[1]} is the configuration of another kind of model than a {what}'s; give one of those"
            ) from None
        raise
    except Exception as problem:
        if "out of memory" in str(problem):
            raise
        reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
        raise ValueError(
            f"the {what} at {source} cannot be loaded ({reason}); its files are damaged or do not belong together, "
            "copy its whole folder again"
        ) from problem
