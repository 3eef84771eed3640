"""Run one training phase, so that it can be stopped at any time and repeated bit by bit.

A run folder holds

    phase.json      settings, what it began with, steps and losses; `finished` when the phase is done
    model/          the result (`vlmsel.models.open.open_subject` reads it)
    moments.safetensors   with `moments`: Adam's second moments of what learnt, by parameter
    checkpoints/    states to go on from, the newest only; removed at the end

An interrupted run that goes on ends with the same weights as an uninterrupted one on the same machine; SIGINT and
SIGTERM save a state first. Until the first state is written the folder holds nothing of the run, so that a run that
fails before leaves it to the mended one.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback

from vlmsel import processes
from vlmsel.models.language import quiet_transformers
from vlmsel.models.subject import Groups, Subject
from vlmsel.runs import bytes_in, read_json, require_room, write_json
from vlmsel.training.loop import MODEL, Order, PhaseTrainer, arguments
from vlmsel.training.moments import NAME as MOMENTS
from vlmsel.training.moments import write_moments
from vlmsel.training.phases import PhaseSettings, optimizer_groups
from vlmsel.training.schedule import rate_factor, total_steps, warmup_steps
from vlmsel.training.shards import require_frozen, shard
from vlmsel.training.watch import Claim, GradientWatch, Progress, Scalars, Stop

RECORD, STATES = "phase.json", "checkpoints"


@dataclass(frozen=True)
class PhaseResult:
    """A finished phase: where the model lies, and the mean loss over supervised tokens of every step."""

    model: Path
    steps: int
    losses: tuple[float, ...]
    seconds: float  # of the call that finished it


def train_phase(
    subject: Subject,
    dataset: Dataset[Any],
    settings: PhaseSettings,
    out: str | Path,
    resume: bool = True,
    order: Order | None = None,
    inputs: Mapping[str, str] | None = None,
) -> PhaseResult:
    """Train a model in place and write it to `out/model`; goes on where an earlier call with the same `out` stopped.

    The data set holds what the model's `collate` makes batches of. `order(epoch)` gives the order in which samples are
    taken, such as one that groups like lengths; without it a permutation is drawn from the seed. `inputs` are hashes of
    what the run begins with, by name; it goes on only from the same. `resume=False` starts anew.

    Raises:
        ValueError: settings, model and data do not fit; a launcher wants what cannot be had; `out` holds a run with
            other settings or inputs; a part gets no gradient; a loss is not finite (names the samples).
    """
    with processes.sharding() as sharded:
        return _train(subject, dataset, settings, Path(out), resume, order, inputs, sharded)


def _train(
    subject: Subject,
    dataset: Dataset[Any],
    settings: PhaseSettings,
    out: Path,
    resume: bool,
    order: Order | None,
    inputs: Mapping[str, str] | None,
    sharded: bool,
) -> PhaseResult:
    """Train as `train_phase` says, with frozen weights in shards or not."""
    if sharded:
        require_frozen(settings.train)
    main = processes.is_main()
    count = len(dataset)  # type: ignore[arg-type]
    record = {"settings": settings.identity(), "samples": count, "inputs": dict(inputs or {})}
    if main and not resume:
        forget(out)
        (out / MOMENTS).unlink(missing_ok=True)
    groups = subject.trained(settings.train)
    finished = earlier_result(out, record)
    if finished is not None:
        subject.load_trained(finished.model)
        return finished
    if "projector" not in settings.train:
        subject.require_ready()
    if main:
        _require_room(groups, settings, out)
    if sharded:
        shard(subject, groups)
    start = time.perf_counter()
    claim = Claim(out / RECORD, {**record, "finished": False})
    try:
        losses = run(subject, groups, dataset, settings, order, claim, sharded)
    finally:
        if main and newest_state(out / STATES) is None:
            forget(out)
    result = PhaseResult(out / MODEL, len(losses), tuple(losses), time.perf_counter() - start)
    if main:
        subject.save(result.model)
        ended = {"finished": True, "steps": result.steps, "seconds": result.seconds, "losses": losses}
        write_json(out / RECORD, {**record, **ended})
        shutil.rmtree(out / STATES, ignore_errors=True)
    return result


def _require_room(groups: Groups, settings: PhaseSettings, out: Path) -> None:
    """Refuse to begin where the disk has no room for what learns, in float32, and for its states, itself with two
    moments, the newest beside the one before it."""
    learns = 4 * sum(weights.numel() for group in groups.values() for weights in group.values())
    states = 0 if settings.save_every is None else 6 * learns
    mend = "make room, or go without states (--settings.save_every null)" if states else "make room"
    moments = learns if settings.moments else 0
    require_room(
        out, learns + moments + states - bytes_in(out), f"the model{' with its states' if states else ''}", mend
    )


def forget(out: Path) -> None:
    """Remove an earlier run's record and states; its model stays until a new one takes its place."""
    (out / RECORD).unlink(missing_ok=True)
    shutil.rmtree(out / STATES, ignore_errors=True)


def earlier_result(out: Path, record: dict[str, Any]) -> PhaseResult | None:
    """Return the result of a finished run in `out`, None when there is work left.

    Raises:
        ValueError: `out` holds a run of another kind; names what differs.
    """
    if not (out / RECORD).is_file():
        return None
    earlier = read_json(out / RECORD)
    if not earlier["finished"] and newest_state(out / STATES) is None:
        return None  # it failed before there was anything to go on from
    was, now = ({**content["settings"], "samples": content["samples"]} for content in (earlier, record))
    differ = [
        f"{key} was {was.get(key)} and is {now.get(key)}" for key in {**was, **now} if was.get(key) != now.get(key)
    ]
    hashes = earlier.get("inputs", {})
    differ += [f"{name} changed" for name, value in record["inputs"].items() if hashes.get(name, value) != value]
    if differ:
        raise ValueError(f"{out} holds a run with other settings or inputs: {'; '.join(differ)}; choose another --out")
    if not earlier["finished"]:
        return None
    return PhaseResult(out / MODEL, earlier["steps"], tuple(earlier["losses"]), earlier.get("seconds", 0.0))


def run(
    subject: Any,
    groups: Groups,
    dataset: Any,
    settings: PhaseSettings,
    order: Order | None,
    claim: Claim,
    sharded: bool = False,
) -> list[float]:
    """Train from the newest complete state beside the claim, or from the start, and return the loss of every step."""
    states = claim.path.parent / STATES
    newest = clean(states)
    steps = total_steps(len(dataset), settings.batch_size, settings.epochs, settings.max_steps)
    warmup = warmup_steps(steps, settings.warmup_ratio, settings.warmup_rounding)
    watch = GradientWatch(subject, groups)
    progress, stop = Progress(), Stop()
    scalars = [Scalars(settings.log_to, states.parent)] if settings.log_to else []
    checkpointing = checkpointed(subject.backbone, settings.gradient_checkpointing)
    with kept_random_state(subject.device), quiet_transformers(), checkpointing:
        optimizer = torch.optim.AdamW(optimizer_groups(groups, settings), betas=(0.9, 0.999), eps=1e-8)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(step, steps, warmup, settings.schedule)
        )
        trainer = PhaseTrainer(
            settings,
            order,
            watch,
            dataset,
            subject,
            sharded,
            args=arguments(settings, subject.device, states),
            optimizers=(optimizer, schedule),
            callbacks=[watch, progress, stop, claim, *scalars],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        clean(states)  # the Trainer has made the folder
        try:
            with stop.listening(settings.save_every is not None):
                trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
            if settings.moments and processes.is_main():
                write_moments(claim.path.with_name(MOMENTS), groups, optimizer)
        finally:
            progress.close()
            subject.zero_grad(set_to_none=True)
            subject.eval()
    assert trainer.state.global_step == steps, (trainer.state.global_step, steps)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def newest_state(states: Path) -> Path | None:
    """Return the newest state that was written to its end; the Trainer writes trainer_state.json last."""
    complete = filter(is_complete, states.glob("checkpoint-*"))
    return max(complete, key=lambda state: int(state.name.rpartition("-")[2]), default=None)


def is_complete(state: Path) -> bool:
    """Tell whether a state was written to its end."""
    try:
        read_json(state / "trainer_state.json")
    except (FileNotFoundError, ValueError):
        return False
    return True


def clean(states: Path) -> Path | None:
    """Remove all but the newest complete state, as a state cannot be written over a half one; return that state."""
    newest = newest_state(states)
    if processes.is_main():
        for state in states.glob("checkpoint-*"):
            if state != newest:
                shutil.rmtree(state)
        if newest is None and states.is_dir():
            shutil.rmtree(states)
    return newest


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Give the global random states, which the Trainer seeds, back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def checkpointed(base: Any, on: bool) -> Iterator[None]:
    """Recompute a transformers model's activations within the block, not reentrantly: frozen inputs stop nothing."""
    if not on:
        yield
        return
    name = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    try:
        getattr(base, f"{name}_checkpointing_enable")({"use_reentrant": False})
        yield
    finally:
        getattr(base, f"{name}_checkpointing_disable")()
        base.disable_input_require_grads()
