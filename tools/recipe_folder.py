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
    """Make or reopen the folder `given.out`, or end as the parser does at wrong words.

    Args:
        parser: what read the options.
        given: the options.
        grows: those that may be others in a later call; where the study's input lies among them.
        worker: tells apart calls that work in the folder at the same time.
    """
    settings = {name: value for name, value in vars(given).items() if name not in {"out", *grows}}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    try:
        runs.open_run(given.out, yaml.safe_dump(plain), worker)
    except ValueError as problem:
        parser.error(str(problem))
