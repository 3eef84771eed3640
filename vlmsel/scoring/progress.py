"""How far a curvature pass has come, kept in a file so that a killed pass goes on with the same numbers.

`curvature.<process>of<processes>/` has the state of every statistic behind a number of batches, and the samples left
out so far. It is written anew now and then, less often the longer the writing takes, and once more at the end where
other processes may have more to do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Hashable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlmsel import processes, runs
from vlmsel.scorers import Statistic

EVERY = 60.0  # seconds between two times, at least
SHARE = 20  # and at least as many times as the last one took to write
PASSES = ("curvature", "ordered")
Statistics = Mapping[tuple[str, Hashable], Statistic]


class Progress:
    """The files of one process's pass, one of `PASSES`: `state.json`, and in a folder of its own one per statistic;
    nothing is kept where the run's `folder` is None."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder = folder and folder / f"{name}.{processes.rank()}of{processes.count()}"
        self._made_for: dict[str, object] = {}
        self._next = time.monotonic() + EVERY

    def load(self, statistics: Statistics, plan: str) -> tuple[int, dict[int, str]]:
        """Bring the statistics to where the files say they were; return the batches that they have seen and the samples
        left out so far.

        Files that were made for another `plan` of batches or other statistics are no help, and the pass begins anew.

        Raises:
            ValueError: a file is damaged or missing.
        """
        self._made_for = {"plan": plan, "of": [f"{block}/{_words(key)}" for block, key in statistics]}
        if self.folder is None or not (self.folder / "state.json").is_file():
            return 0, {}
        about = runs.read_json(self.folder / "state.json")
        if any(about.get(name) != value for name, value in self._made_for.items()):
            return 0, {}
        for number, statistic in enumerate(statistics.values()):
            path = self._file(self.folder, about["batches"], number)
            try:
                # copied, because sums over memory that is aligned otherwise may round otherwise
                statistic.load({key: tensor.clone() for key, tensor in load_file(path).items()})
            except (SafetensorError, OSError) as problem:
                raise ValueError(
                    f"{path}: damaged ({problem}); delete {self.folder} and run the same command again"
                ) from None
        return int(about["batches"]), {int(uid): reason for uid, reason in about["left_out"].items()}

    def note(self, batches: int, statistics: Statistics, left_out: Mapping[int, str]) -> None:
        """Write the files if it is time to; `batches` is what the statistics have seen."""
        if time.monotonic() >= self._next:
            begun = time.monotonic()
            self.save(batches, statistics, left_out)
            self._next = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - begun))

    def save(self, batches: int, statistics: Statistics, left_out: Mapping[int, str]) -> None:
        """Write the files, one statistic at a time, and only then say that they count."""
        if self.folder is None:
            return
        for number, statistic in enumerate(statistics.values()):
            state = {key: tensor.detach().cpu().contiguous() for key, tensor in statistic.state().items()}
            with runs.atomic_path(self._file(self.folder, batches, number), durable=False) as part:  # damage is noticed
                save_file(state, part)
        about = {"batches": batches, **self._made_for, "left_out": {str(uid): why for uid, why in left_out.items()}}
        runs.write_json(self.folder / "state.json", about)
        for other in self.folder.iterdir():
            if other.is_dir() and other.name != str(batches):
                shutil.rmtree(other)

    def finish(self, batches: int, statistics: Statistics, left_out: Mapping[int, str]) -> None:
        """Write the files when the pass is over and others are waited for, who may be killed."""
        if processes.count() > 1:
            self.save(batches, statistics, left_out)

    @staticmethod
    def _file(folder: Path, batches: int, number: int) -> Path:
        return folder / str(batches) / f"{number:05d}.safetensors"


def _words(key: Hashable) -> str:
    """Write what is gathered; what is named by its identity alone (a number) has its place in the order."""
    return "own" if isinstance(key, int) else repr(key)


def remove(folder: Path) -> None:
    """Delete what passes left in a run folder: what it was for is done."""
    for name in PASSES:
        for path in folder.glob(f"{name}.*of*"):
            shutil.rmtree(path)
