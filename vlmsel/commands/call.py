"""Run a command from another one: the ordinary command, with its options as its configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from vlmsel import progress
from vlmsel.commands.groups import defaults, grouped
from vlmsel.commands.work import WORK


def call(command: str, out: Path, **options: Any) -> None:
    """Run a command into a folder or file, with options by their names."""
    print(f"\n== vlmsel {command} -> {out}", flush=True)
    begin = WORK[command].stages if command in WORK else ()
    function = getattr(import_module(f"vlmsel.commands.{command}"), command)
    config = yaml.safe_dump(json.loads(json.dumps({**defaults(function), **options}, default=asdict)))
    with progress.within(command):
        progress.begin(begin)
        function(out=str(out), config=f"# vlmsel {command}\n{config}", **grouped(function, options))
