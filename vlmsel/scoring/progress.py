"""How far a curvature pass has come, kept in a file so that a killed pass goes on with the same numbers.

`curvature.<process>of<processes>.safetensors` has the state of every accumulator behind a number of batches, and the
samples left out so far. It is written anew now and then, less often the longer the writing takes, under a temporary
name, and once more at the end where other processes may have more to do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlmsel import processes, runs
from vlmsel.scoring.passes import Bad
from vlmsel.scoring.stream import BatchPlan

EVERY = 60.0  # seconds between two files, at least
SHARE = 20  # and at least as many times as the last one took to write
PASSES = ("curvature", "ordered")
Accumulators = Mapping[tuple[str, str], Any]


class Progress:
    """The file of one process's curvature pass."""

    def __init__(self, folder: Path, name: str, accumulators: Accumulators, bad: Bad, plan: BatchPlan) -> None:
        self.path = folder / f"{name}.{processes.rank()}of{processes.count()}.safetensors"
        self.accumulators, self.bad = accumulators, bad
        self.plan = hashlib.sha256(repr([list(group) for group in plan.groups]).encode()).hexdigest()
        self._next = time.monotonic() + EVERY

    def load(self) -> int:
        """Bring the accumulators to where the file says they were; return the batches that they have seen.

        A file that was made for another plan is no help, and the pass begins anew.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.path.is_file():
            return 0
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["about"])
                if about["plan"] != self.plan or about["of"] != self._names():
                    return 0
                for number, accumulator in enumerate(self.accumulators.values()):
                    keys = [key for key in file.keys() if key.startswith(f"{number}/")]  # noqa: SIM118 - not a dict
                    # copied, because sums over memory that is aligned otherwise may round otherwise
                    accumulator.load_state({key.partition("/")[2]: file.get_tensor(key).clone() for key in keys})
        except (SafetensorError, KeyError, TypeError) as problem:
            raise ValueError(f"{self.path}: damaged ({problem}); delete it and run the same command again") from None
        self.bad.reasons.update({int(uid): reason for uid, reason in about["bad"].items()})
        return int(about["batches"])

    def note(self, batches: int) -> None:
        """Write the file if it is time to; `batches` is what the accumulators have seen."""
        if time.monotonic() >= self._next:
            begun = time.monotonic()
            self.save(batches)
            self._next = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - begun))

    def save(self, batches: int) -> None:
        """Write the file."""
        state = {
            f"{number}/{key}": tensor.detach().cpu().contiguous()
            for number, accumulator in enumerate(self.accumulators.values())
            for key, tensor in accumulator.state().items()
        }
        about = {"batches": batches, "plan": self.plan, "of": self._names(), "bad": self.bad.reasons}
        with runs.atomic_path(self.path) as part:
            save_file(state, part, metadata={"about": json.dumps(about)})

    def finish(self, batches: int) -> None:
        """Write the file when the pass is over and others are waited for, who may be killed."""
        if processes.count() > 1:
            self.save(batches)

    def _names(self) -> list[str]:
        return [f"{scorer}/{block}" for scorer, block in self.accumulators]


def remove(folder: Path) -> None:
    """Delete the files of a folder: what they were for is done."""
    for name in PASSES:
        for path in folder.glob(f"{name}.*of*.safetensors"):
            path.unlink()
