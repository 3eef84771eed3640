"""The words of `vlmsel score` on a small world, what it leaves, and how it refuses, for tests of the commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmsel import cli
from vlmsel.scoring.table import read_table


def words(command: str, options: Mapping[str, Any]) -> list[str]:
    """A command with its options."""
    return [command, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


def score_words(world: Path, aligned: Path, out: Path, scorers: Sequence[str], /, **more: Any) -> list[str]:
    """The command on two targets and a few blocks, without what has tests of its own: the first batch's check and
    single targets. `more` adds options or takes the place of these."""
    options = {
        "model": aligned,
        "pool": f"{world}/pool.json",
        "images": f"{world}/images",
        "targets.gqa": f"{world}/targets/gqa.json",
        "targets.pope": f"{world}/targets/pope.json",
        "blocks": r"projector|layers\.3\..*q_proj\.lora",
        "scorers": listed(scorers),
        "check": "none",
        "each_target": "false",
        "device": "cpu",
        "out": out,
        **more,
    }
    return words("score", options)


def listed(values: Sequence[Any]) -> str:
    """A list as the command line takes it."""
    return f"[{','.join(map(str, values))}]"


def table(out: Path, pool: Path | None = None) -> dict[str, list[Any]]:
    """The columns of a run's score table as lists, which == compares; nan stands for no score."""
    return {name: column.tolist() for name, column in read_table(out / "scores.parquet", pool)[0].items()}


def about(out: Path) -> dict[str, Any]:
    """What a run's score table says of itself."""
    return read_table(out / "scores.parquet")[1]


def refused(arguments: Sequence[Any], capsys: Any) -> str:
    """The one line that a command ends with; progress bars aside."""
    capsys.readouterr()
    assert cli.main([str(word) for word in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.rstrip().endswith(("image]", "sample]"))]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]
