"""transformers.Trainer with our batches, loss, order of samples and files.

The Trainer does devices, accumulation, clipping and the loop. The loss of a step is the mean over all supervised tokens
of its samples: every micro-batch adds its sum of token losses, divided by the number of tokens of the whole step.

Several processes deal each micro-batch of one process among themselves, and add up their gradients once per step,
without DistributedDataParallel: a process may have nothing to do, and a parameter that no process has a gradient of
keeps none and is not touched by the optimiser, as with one process. Frozen weights may lie in shards (see shards.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments

from vlmsel import processes
from vlmsel.models.losses import TokenLosses
from vlmsel.runs import writing
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.shards import idle
from vlmsel.training.watch import GradientWatch

BUCKET = 10_000_000  # entries of gradients that are added up together
MODEL = "model"  # the folder of a model within that of a run or a state
Order = Callable[[int], Sequence[int]]  # epoch -> every position of the data set once


class EpochOrder(Sampler[int]):
    """Gives the order of the samples in an epoch: the caller's, or a permutation drawn from seed and epoch.

    Micro-batches of `batch` samples are dealt to processes in turn, one sample each; where that does not come out even,
    the position behind the last sample fills up, so that all have equally many.
    """

    def __init__(self, samples: int, seed: int, order: Order | None, batch: int) -> None:
        self.samples, self.seed, self.order, self.batch = samples, seed, order, batch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.samples // self.batch) * share(self.batch) * processes.count()

    def __iter__(self) -> Iterator[int]:
        indices, each = self._indices(), share(self.batch)
        for start in range(0, self.samples, self.batch):
            for process in range(processes.count()):
                own = indices[start : start + self.batch][process :: processes.count()]
                yield from own + [self.samples] * (each - len(own))

    def _indices(self) -> list[int]:
        if self.order is None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            return torch.randperm(self.samples, generator=generator).tolist()
        indices = list(self.order(self.epoch))
        if sorted(indices) != list(range(self.samples)):
            raise ValueError(f"order({self.epoch}) must hold each of the {self.samples} sample positions once")
        return indices


def share(batch: int) -> int:
    """Return how many samples of a micro-batch a process has at most."""
    return -(-batch // processes.count())


class OrNothing(Dataset[Any]):
    """A data set with nothing, None, behind its end."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Any:
        return self.samples[position] if position < len(self) else None


def collated(collate: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    """Make a batch of what there is; None where there is nothing."""
    there = [item for item in items if item is not None]
    return collate(there) if there else None


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the sum of all processes' gradients; one that none of them has stays None."""
    if processes.count() == 1:
        return
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    had = torch.tensor([float(parameter.grad is not None) for parameter in learning])
    processes.add_up(had)
    waiting: list[Tensor] = []
    for parameter, there in zip(learning, had.tolist(), strict=True):
        if there:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if waiting and (parameter.dtype != waiting[0].dtype or sum(map(Tensor.numel, waiting)) > BUCKET):
                _add_up(waiting)
                waiting = []
            waiting.append(parameter.grad)
    _add_up(waiting)


def _add_up(tensors: Sequence[Tensor]) -> None:
    """Add up tensors of one dtype as one, in place: every sum of its own costs a round of messages."""
    if tensors:
        whole = torch.cat([tensor.flatten() for tensor in tensors])
        processes.add_up(whole)
        for tensor, part in zip(tensors, whole.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


class PhaseTrainer(Trainer):
    """transformers.Trainer with our batches, loss, order of samples and files."""

    def __init__(
        self,
        settings: PhaseSettings,
        order: Order | None,
        watch: GradientWatch,
        dataset: Any,
        model: Any,
        sharded: bool = False,
        **kwargs: Any,
    ) -> None:
        collate = partial(collated, model.collate)
        super().__init__(model=model, train_dataset=OrNothing(dataset), data_collator=collate, **kwargs)
        self.settings, self.order, self.watch, self.sharded = settings, order, watch, sharded
        self.model_accepts_loss_kwargs = True  # the loss is normalised over the whole accumulated batch already
        # gradients are added up here; accelerate would wrap the model in DistributedDataParallel
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)  # type: ignore[method-assign]

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        batch = self.settings.batch_size // self.settings.gradient_accumulation
        return EpochOrder(len(self.train_dataset), self.settings.seed, self.order, batch)  # type: ignore[arg-type]

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs.to(self.args.device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        total = torch.zeros((), dtype=torch.long)
        for batch in (batch for batch in batch_samples if batch is not None):
            counts = self.model.supervised(batch).cpu()  # type: ignore[union-attr, operator]
            if bool((counts == 0).any()):
                names = sample_names(batch, counts == 0)
                raise ValueError(f"{names}: no supervised token; leave it out of the data")
            total = total + counts.sum()
        total = total.to(device)
        processes.add_up(total)
        return total

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if inputs is None:  # the other processes have all of it
            loss = torch.zeros((), device=self.args.device)
            if self.sharded:
                idle(model.parameters(), partial(self._any_loss, model))
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            add_up_gradients(model.parameters())
        return loss * processes.count()  # the Trainer logs the mean over processes

    def _any_loss(self, model: Any) -> Tensor:
        """Return the loss of some sample."""
        batch = model.collate([self.train_dataset[0]]).to(self.args.device)  # type: ignore[index]
        with autocast(self.settings.precision, self.args.device):
            tokens: TokenLosses = model(batch)
        return tokens.losses.sum()

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
        return total / num_items_in_batch

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
    if settings.batch_size % settings.gradient_accumulation:
        raise ValueError(
            f"batch_size {settings.batch_size} cannot be cut into {settings.gradient_accumulation} micro-batches; make "
            "it a multiple"
        )
    args.per_device_train_batch_size = share(settings.batch_size // settings.gradient_accumulation)
    args._n_gpu = min(1, args.n_gpu)  # several GPUs are for several processes; batches cannot be scattered
    return args
