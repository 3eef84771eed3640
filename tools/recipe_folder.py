"""The folder of a recipe's study: once it has begun nothing changes but what may grow, such as its seeds.

A study goes on from what lies in its folder. Results of other settings are not what it asks for: it is refused, as a
command of vlmsel would be.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

import yaml

from vlmsel import runs


def open_folder(
    parser: argparse.ArgumentParser, given: argparse.Namespace, grows: Collection[str], worker: str = ""
) -> None:
    """Make or reopen the folder `given.out`, or end as the parser does at wrong words. A file is known by its content.

    Args:
        parser: what read the options.
        given: the options.
        grows: those that may be others in a later call.
        worker: tells apart calls that work in the folder at the same time.
    """
    settings = {name: value for name, value in vars(given).items() if name not in {"out", *grows}}
    try:
        plain = {name: runs.file_hash(one) if isinstance(one, Path) else one for name, one in settings.items()}
        runs.open_run(given.out, yaml.safe_dump(plain), worker)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
