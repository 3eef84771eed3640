"""Fine-tune a text classifier through transformers.Trainer: AdamW, linear warm-up, then linear decay to zero.

The loss of a step is the mean of its samples' cross entropies. Seeded: order of the samples and dropout follow from the
seed alone, and the global random state is left as it was. HyperINF's and DataInf's mislabelled-data studies tune so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from vlmsel.models.classifier import sample_losses, trained_parameters
from vlmsel.models.language import quiet_transformers
from vlmsel.training.loop import EpochOrder, sample_names
from vlmsel.training.schedule import total_steps, warmup_steps
from vlmsel.training.trainer import kept_random_state
from vlmsel.training.watch import Progress

PARTS = 4  # of like length that a step is cut into on CPUs, where padding costs as much as words
RATES = {"lora": 1e-3, "last-layer": 1e-2}


@dataclass(frozen=True)
class FineTuning:
    """How the classifier is fine-tuned.

    Attributes:
        learning_rate: peak rate of AdamW; 1e-3 for LoRA and 1e-2 for the head alone when left out.
        batch_size: samples per step.
        epochs: passes over the training samples.
        warmup_ratio: part of all steps with a rising rate.
        weight_decay: decoupled decay of all that is trained.
        max_grad_norm: gradients are scaled down to this norm; 0 switches that off.
    """

    learning_rate: float | None = None
    batch_size: int = 32
    epochs: float = 3.0
    warmup_ratio: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}")
        if self.weight_decay < 0 or self.max_grad_norm < 0:
            raise ValueError("weight_decay and max_grad_norm must not be negative")

    def rate(self, tune: str) -> float:
        """Return the peak rate for a way to tune.

        >>> FineTuning().rate("lora"), FineTuning(learning_rate=3e-4).rate("last-layer")
        (0.001, 0.0003)
        """
        return RATES[tune] if self.learning_rate is None else self.learning_rate


class ClassifierTrainer(Trainer):
    """transformers.Trainer with our batches, loss and order of samples."""

    def __init__(self, order: EpochOrder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = order

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return self.order

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None  # samples are counted by compute_loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        parts = inputs.by_length(PARTS) if self.args.device.type == "cpu" else [inputs]
        total = torch.zeros((), device=self.args.device)
        for part in parts:
            losses = sample_losses(model, part)
            finite = torch.isfinite(losses)
            if not bool(finite.all()):
                names, step = sample_names(part, ~finite), self.state.global_step + 1
                raise ValueError(f"{names}: the loss is not finite at step {step}; lower learning_rate")
            total = total + losses.sum()
        return total / len(inputs.uids)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # not counted; the Trainer would look for keys in the batch


def fine_tune(
    model: Any, dataset: Any, collate: Callable[[list[Any]], Any], settings: FineTuning, rate: float, seed: int
) -> list[float]:
    """Train, in place, what of a model requires gradients; return the loss of every step. It ends in eval mode.

    Raises:
        ValueError: a loss is not finite (names the samples).
    """
    steps = total_steps(len(dataset), settings.batch_size, settings.epochs)
    parameters = list(trained_parameters(model).values())
    progress = Progress("fine-tuning")
    with (
        tempfile.TemporaryDirectory() as folder,
        kept_random_state(next(model.parameters()).device),
        quiet_transformers(),
    ):
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=settings.weight_decay)
        warmup = warmup_steps(steps, settings.warmup_ratio)
        trainer = ClassifierTrainer(
            EpochOrder(len(dataset), seed, None),
            model=model,
            args=_arguments(settings, next(model.parameters()).device, folder, seed),
            train_dataset=dataset,
            data_collator=collate,
            optimizers=(optimizer, get_linear_schedule_with_warmup(optimizer, warmup, steps)),
            callbacks=[progress],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            trainer.train()
        finally:
            progress.close()
            model.zero_grad(set_to_none=True)
            model.eval()
    assert trainer.state.global_step == steps, (trainer.state.global_step, steps)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _arguments(settings: FineTuning, device: torch.device, folder: str, seed: int) -> TrainingArguments:
    """Translate settings into the Trainer's; rate and schedule are not among them, we bring our own optimiser."""
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        max_grad_norm=settings.max_grad_norm,
        seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
    )
    args._n_gpu = min(1, args.n_gpu)  # batches cannot be scattered
    return args
