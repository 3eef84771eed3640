"""transformers.Trainer with our batches, loss, order of samples and files.

The Trainer does devices, accumulation, clipping and the loop. The loss of a step is the mean over all supervised tokens
of its samples: every micro-batch adds its sum of token losses, divided by the number of tokens of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from vlmsel.models.losses import TokenLosses
from vlmsel.runs import writing
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.watch import GradientWatch

MODEL = "model"  # the folder of a model within that of a run or a state
Order = Callable[[int], Sequence[int]]  # epoch -> every position of the data set once


class EpochOrder(Sampler[int]):
    """Gives the order of the samples in an epoch: the caller's, or a permutation drawn from seed and epoch."""

    def __init__(self, samples: int, seed: int, order: Order | None) -> None:
        self.samples, self.seed, self.order = samples, seed, order
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        if self.order is None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            return iter(torch.randperm(self.samples, generator=generator).tolist())
        indices = list(self.order(self.epoch))
        if sorted(indices) != list(range(self.samples)):
            raise ValueError(f"order({self.epoch}) must hold each of the {self.samples} sample positions once")
        return iter(indices)


class PhaseTrainer(Trainer):
    """transformers.Trainer with our batches, loss, order of samples and files."""

    def __init__(self, settings: PhaseSettings, order: Order | None, watch: GradientWatch, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings, self.order, self.watch = settings, order, watch
        self.model_accepts_loss_kwargs = True  # the loss is normalised over the whole accumulated batch already

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return EpochOrder(len(self.train_dataset), self.settings.seed, self.order)  # type: ignore[arg-type]

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        total = torch.zeros((), dtype=torch.long)
        for batch in batch_samples:
            counts = self.model.supervised(batch).cpu()  # type: ignore[union-attr, operator]
            if bool((counts == 0).any()):
                names = sample_names(batch, counts == 0)
                raise ValueError(f"{names}: no supervised token; leave it out of the data")
            total = total + counts.sum()
        total = total.to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        with autocast(self.settings.precision, self.args.device):
            tokens: TokenLosses = model(inputs)
        total = tokens.losses.sum()
        if not bool(torch.isfinite(total)):
            step = self.state.global_step + 1
            raise ValueError(
                f"{bad_samples(inputs, tokens)}: the loss is not finite at step {step}; lower learning_rate"
            )
        self.watch.see(inputs)
        if not total.requires_grad:  # text only while just the projector trains: there is nothing to learn from it
            total = total.detach().requires_grad_()
        return total * self.args.world_size / num_items_in_batch  # processes average their gradients

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # not counted; the Trainer would look for keys in the batch

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            self.model.save(Path(output_dir or str(self.args.output_dir)) / MODEL)  # type: ignore[union-attr, operator]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        self.model.load_trained(Path(resume_from_checkpoint) / MODEL)  # type: ignore[union-attr, operator]


def autocast(precision: str, device: torch.device) -> Any:
    """Return the context in which the forward pass runs."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def sample_names(batch: Any, chosen: Tensor) -> str:
    """Name the chosen samples [n] of a batch by their uids, or by their rows where there are none."""
    rows = chosen.nonzero()[:, 0].tolist()
    uids = getattr(batch, "uids", None)
    kind, values = ("row", rows) if uids is None else ("sample uid", [int(uids[row]) for row in rows])
    return f"{kind} {', '.join(map(str, values[:8]))}{' and others' if len(values) > 8 else ''}"


def bad_samples(batch: Any, tokens: TokenLosses) -> str:
    """Name the samples that have a token whose loss is not finite."""
    bad = torch.zeros(tokens.samples, dtype=torch.bool, device=tokens.rows.device)
    bad[tokens.rows[~torch.isfinite(tokens.losses)]] = True
    return sample_names(batch, bad)


def arguments(settings: PhaseSettings, device: torch.device, states: Path) -> TrainingArguments:
    """Translate settings into the Trainer's; rates and schedule are not among them, we bring our own optimiser.

    Raises:
        ValueError: the batch cannot be cut into equal micro-batches.
    """
    args = TrainingArguments(
        output_dir=str(states),
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no" if settings.save_every is None else "steps",
        save_steps=settings.save_every or 0,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
    )
    parts = settings.gradient_accumulation * args.world_size
    if settings.batch_size % parts:
        raise ValueError(
            f"batch_size {settings.batch_size} cannot be cut into {settings.gradient_accumulation} micro-batches on "
            f"each of {args.world_size} processes; make it a multiple of {parts}"
        )
    args.per_device_train_batch_size = settings.batch_size // parts
    args._n_gpu = min(1, args.n_gpu)  # several GPUs are for several processes; batches cannot be scattered
    return args
