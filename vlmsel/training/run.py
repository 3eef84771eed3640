"""Train a model on a file of samples: its data read and reported, then one phase in a run folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import Subset

from vlmsel import progress, runs
from vlmsel.data.batches import modality_length_order
from vlmsel.data.dataset import Reading
from vlmsel.models.pool import open_pool
from vlmsel.models.subject import Subject
from vlmsel.training.loop import Order
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.trainer import PhaseResult, train_phase


def train_on(
    subject: Subject,
    data: str | Path,
    reading: Reading,
    settings: PhaseSettings,
    out: str | Path,
    group: bool = False,
    only: str | None = None,
    then: str = "",
) -> PhaseResult:
    """Train a model in place on the usable samples of `data`, leave the result in `out/model` and say so in one line.

    With `group`, a batch holds samples of like kind and length, as in LLaVA-1.5; with `only`, a file of uids or
    weights, what it chooses counts alone. `then` is what to type next.

    Raises:
        FileNotFoundError, ValueError: as for `open_pool` and `train_phase`.
    """
    pool = open_pool(subject, data, reading, only=only)
    samples, usable = pool.samples, pool.samples.usable()
    pool.report(Path(out) / "skipped.json")
    order = _grouped([samples.signed_lengths()[i] for i in usable], settings) if group else None
    inputs = {**pool.inputs("the data"), "the model": subject.digest(), "what the loss is taken on": reading.loss_on}
    subject.note(**_facts(data, pool.sha256, len(usable), only))
    inputs |= {f"the version of {name}": number for name, number in runs.versions().items()}
    result = train_phase(subject, Subset(samples, usable), settings, out, order=order, inputs=inputs)
    tail = result.losses[-max(1, len(result.losses) // 10) :]
    end = f"final loss {sum(tail) / len(tail):.3f}; model: {result.model}"
    progress.ended(f"{result.steps} steps on {len(usable)}{pool.share(len(usable))} samples, {end}", then=then)
    return result


def _facts(data: str | Path, sha256: str, usable: int, only: str | None) -> dict[str, str]:
    """Say what data these are, and how they were chosen where a manifest lies beside them."""
    what = data if only is None else f"what {only} chooses of {data}"
    facts = {"Data": f"{what} ({usable} samples, SHA-256 {sha256})"}
    manifest = Path(f"{only or data}.manifest.json")
    if manifest.is_file():
        about = runs.read_json(manifest)
        names = ("rule", "scorer", "scores", "pool", "pool_sha256", "seed")
        facts["Choice"] = ", ".join(f"{name} {about[name]}" for name in names if about.get(name) is not None)
    return facts


def _grouped(signed_lengths: list[int], settings: PhaseSettings) -> Order:
    """Give the order that puts samples of like kind and length into one batch, anew in every epoch."""

    def order(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        return modality_length_order(signed_lengths, settings.batch_size, 1, generator)

    return order
