"""How far a curvature pass has come, kept in a file so that a killed pass goes on with the same numbers.

`curvature.<process>of<processes>/` has the state of every accumulator behind a number of batches, and the samples left
out so far. It is written anew now and then, less often the longer the writing takes, and once more at the end where
other processes may have more to do.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlmsel import processes, runs
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.score_pass import Bad

EVERY = 60.0  # seconds between two times, at least
SHARE = 20  # and at least as many times as the last one took to write
PASSES = ("curvature", "ordered")
Accumulators = Mapping[tuple[str, str], Any]


class Progress:
    """The files of one process's curvature pass: `state.json`, and in a folder of its own one per accumulator."""

    def __init__(self, folder: Path, name: str, accumulators: Accumulators, bad: Bad, plan: BatchPlan) -> None:
        self.folder = folder / f"{name}.{processes.rank()}of{processes.count()}"
        self.state, self.accumulators, self.bad = self.folder / "state.json", accumulators, bad
        self.plan = hashlib.sha256(repr([list(group) for group in plan.groups]).encode()).hexdigest()
        self._next = time.monotonic() + EVERY

    def load(self) -> int:
        """Bring the accumulators to where the files say they were; return the batches that they have seen.

        Files that were made for another plan are no help, and the pass begins anew.

        Raises:
            ValueError: a file is damaged or missing.
        """
        if not self.state.is_file():
            return 0
        about = runs.read_json(self.state)
        if about["plan"] != self.plan or about["of"] != self._names():
            return 0
        for number, accumulator in enumerate(self.accumulators.values()):
            path = self._file(about["batches"], number)
            try:
                # copied, because sums over memory that is aligned otherwise may round otherwise
                accumulator.load_state({key: tensor.clone() for key, tensor in load_file(path).items()})
            except (SafetensorError, OSError) as problem:
                raise ValueError(
                    f"{path}: damaged ({problem}); delete {self.folder} and run the same command again"
                ) from None
        self.bad.reasons.update({int(uid): reason for uid, reason in about["bad"].items()})
        return int(about["batches"])

    def note(self, batches: int) -> None:
        """Write the file if it is time to; `batches` is what the accumulators have seen."""
        if time.monotonic() >= self._next:
            begun = time.monotonic()
            self.save(batches)
            self._next = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - begun))

    def save(self, batches: int) -> None:
        """Write the files, one accumulator at a time, and only then say that they count."""
        for number, accumulator in enumerate(self.accumulators.values()):
            state = {key: tensor.detach().cpu().contiguous() for key, tensor in accumulator.state().items()}
            with runs.atomic_path(self._file(batches, number)) as part:
                save_file(state, part)
        about = {"batches": batches, "plan": self.plan, "of": self._names(), "bad": self.bad.reasons}
        runs.write_json(self.state, about)
        for other in self.folder.iterdir():
            if other.is_dir() and other.name != str(batches):
                shutil.rmtree(other)

    def _file(self, batches: int, number: int) -> Path:
        return self.folder / str(batches) / f"{number:05d}.safetensors"

    def finish(self, batches: int) -> None:
        """Write the file when the pass is over and others are waited for, who may be killed."""
        if processes.count() > 1:
            self.save(batches)

    def _names(self) -> list[str]:
        return [f"{scorer}/{block}" for scorer, block in self.accumulators]


def remove(folder: Path) -> None:
    """Delete what passes left in a run folder: what it was for is done."""
    for name in PASSES:
        for path in folder.glob(f"{name}.*of*"):
            shutil.rmtree(path)
