"""The words of `vlmsel score` on a small world, for tests of the command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def score_words(world: Path, aligned: Path, out: Path, scorers: Sequence[str], /, **more: Any) -> list[str]:
    """The command on two targets and a few blocks; `more` adds options or takes the place of these."""
    options = {
        "model": aligned,
        "pool": f"{world}/pool.json",
        "images": f"{world}/images",
        "targets.gqa": f"{world}/targets/gqa.json",
        "targets.pope": f"{world}/targets/pope.json",
        "blocks": r"projector|layers\.3\..*q_proj\.lora",
        "scorers": f"[{','.join(scorers)}]",
        "device": "cpu",
        "out": out,
        **more,
    }
    return ["score", *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
