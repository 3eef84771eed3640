"""What is watched while a phase trains: progress, signals to stop, the first state, that gradients reach what should
learn.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from vlmsel import processes, progress
from vlmsel.models.subject import Groups, Subject
from vlmsel.runs import write_json


class Progress(TrainerCallback):
    """A bar with steps, rate, time left and the last loss."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = progress.bar("training", state.max_steps, "step", state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        """Leave the bar as it is; also after an error."""
        if self.bar is not None:
            self.bar.close()


class Scalars(TrainerCallback):
    """Sends the loss, the rate and the gradient's norm of every step to TensorBoard (`folder/logs`) or W&B."""

    NAMES = ("loss", "learning_rate", "grad_norm")

    def __init__(self, where: str, folder: Path) -> None:
        self.where, self.folder = where, folder
        self.send: Any = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs and state.is_world_process_zero:
            if self.send is None:  # not before a step is done: a run that fails earlier has nothing to keep
                self.send = self._tensorboard() if self.where == "tensorboard" else self._wandb()
            self.send({f"train/{name}": logs[name] for name in self.NAMES if name in logs}, state.global_step)

    def _tensorboard(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.folder / "logs"))

        def send(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return send

    def _wandb(self) -> Any:
        import wandb

        return wandb.init(project="vlmsel", name=str(self.folder), dir=str(self.folder), resume="allow").log


class Stop(TrainerCallback):
    """Ends a run after the step in which SIGINT or SIGTERM comes, with a state to go on from; a second one at once.

    Several processes end after the same step, whichever of them was told to.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: signal.Signals | None = None

    @contextmanager
    def listening(self, on: bool) -> Iterator[None]:
        """Take signals within the block, and hand the one that came to whoever took them before."""
        if not on or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in self.SIGNALS}
        before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

        def give_back() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def take(number: int, frame: Any) -> None:
            self.number = signal.Signals(number)
            give_back()

        for number in before:
            signal.signal(number, take)
        try:
            yield
        finally:
            give_back()
        if self.number is not None:
            signal.raise_signal(self.number)
            raise KeyboardInterrupt  # where nobody else minds it

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        told = torch.tensor([float(self.number == number) for number in self.SIGNALS])
        processes.add_up(told)
        if bool(told.any()):
            self.number = self.number or self.SIGNALS[int(told.argmax())]
            control.should_save = control.should_training_stop = True


class Claim(TrainerCallback):
    """Writes a run's record just before its first state: a run that fails earlier has nothing that others may not
    replace.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path, self.record = path, record

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save and state.is_world_process_zero:
            write_json(self.path, self.record)


class GradientWatch(TrainerCallback):
    """Refuses a run in which a part never gets a gradient; otherwise it would end normally with that part unchanged.

    Each group is checked at its first optimiser step; a module whose rows are not samples (the projector) at the first
    step that has a row for it.
    """

    def __init__(self, subject: Subject, groups: Groups) -> None:
        self.subject = subject
        self.trained = tuple(groups)
        self.pending = {name: list(group.values()) for name, group in groups.items()}
        self.reached = dict.fromkeys(groups, False)

    def see(self, batch: Any) -> None:
        """Take note of which modules a batch has rows for."""
        if self.pending:
            for name in self.pending:
                self.reached[name] = self.reached[name] or self.subject.reaches(batch, name)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.pending:
            return
        reached = torch.tensor([float(self.reached[name]) for name in self.pending])
        processes.add_up(reached)  # gradients are, too
        for (name, parameters), there in zip(list(self.pending.items()), reached.tolist(), strict=True):
            if not there:
                continue
            if not any(p.grad is not None and bool(p.grad.any()) for p in parameters):
                raise ValueError(
                    f"no gradient reaches the {name} in its first step, so that it would stay as it is; check that "
                    f"nothing between it and the loss is cut off, and that supervised tokens follow the images"
                )
            del self.pending[name]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.subject.mark_trained([name for name in self.trained if name not in self.pending])
