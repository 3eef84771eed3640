"""What align and tune share: data for the model, then one phase of training in a run folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.data import Subset

from vlmsel import processes, runs
from vlmsel.commands.inputs import digest, open_data, pad_id
from vlmsel.data.batches import Collator, modality_length_order
from vlmsel.data.encoding import LossOn
from vlmsel.models.vlm import VLM
from vlmsel.training.loop import Order
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.trainer import train_phase


def start_phase(out: str, config: str) -> None:
    """Open the run folder, in the first process."""
    if processes.is_main():
        runs.open_run(out, config)


def run_phase(
    vlm: VLM, data: str, images: str | None, out: str, settings: PhaseSettings, group: bool, max_length: int,
    loss_on: LossOn = "answers",
) -> None:  # fmt: skip
    """Train a model on the usable samples of `data` and leave the result in `out/model`."""
    found = open_data(vlm, data, images, max_length, loss_on=loss_on)
    if processes.is_main():
        found.report(Path(out) / "skipped.json")
    samples, usable = found.samples, found.samples.usable()
    order = _grouped([samples.signed_lengths()[i] for i in usable], settings) if group else None
    inputs = {"the data": found.sha256, "the model": digest(vlm), "what the loss is taken on": loss_on}
    chosen, collator = Subset(samples, usable), Collator(pad_id(vlm))
    result = train_phase(vlm, chosen, collator, settings, out, order=order, inputs=inputs)
    tail = result.losses[-max(1, len(result.losses) // 10) :]
    print(
        f"{result.steps} steps on {len(usable)} samples, final loss {sum(tail) / len(tail):.3f}; model: {result.model}"
    )


def _grouped(signed_lengths: list[int], settings: PhaseSettings) -> Order:
    """Give the order that puts samples of like kind and length into one batch, anew in every epoch."""

    def order(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        return modality_length_order(signed_lengths, settings.batch_size, 1, generator)

    return order
