"""How other attribution libraries compute TracIn and DataInf for `bench_peers.py`: one small function for each.

A function sets a library up (not timed) and returns what computes all scores (timed), target gradients included. Every
library gets batches of samples of like length, padded on the right to the longest of the batch. The loss is the same:
the mean cross entropy over a sample's own supervised tokens. Libraries that take a loss of a batch get ours, whose
output head runs at supervised positions only; those that map over samples with torch.func (dattri, pyDVL) and the one
whose loss is fixed (bergson, loss_reduction="mean") run the head everywhere.
"""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from plain_text import sample_losses
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vlmsel.data.batches import Collator, Item
from vlmsel.models.lora import lora_parameters

Scores = Callable[[], Tensor]  # what is timed; [targets, n], higher = more helpful


@dataclass(frozen=True)
class Job:
    """What every library is given; samples stand longest first (consecutive ones have like lengths) or as they come."""

    model: nn.Module  # a Llama with LoRA, everything else frozen
    pool: Sequence[Item]
    targets: Sequence[Item]  # each is a target of its own
    batch_size: int
    damping: float  # λ of DataInf, the same for every block
    folder: str  # for libraries that write files


def lora_layers(model: nn.Module) -> list[str]:
    """Name the linear modules that hold the LoRA matrices, in the model or a wrapper of it."""
    return [name for name, _ in model.named_modules() if name.endswith((".lora_A.default", ".lora_B.default"))]


class PerSample(nn.Module):
    """The model with the loss inside: (ids, labels, mask) -> [n], which leaves padding and the head to us."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor) -> Tensor:
        return sample_losses(
            self.model, SimpleNamespace(input_ids=input_ids, labels=labels, attention_mask=attention_mask)
        )


class Logits(nn.Module):
    """ids -> logits, for libraries that map over samples with torch.func.

    Padding stands on the right and needs no mask; attention is eager because vmap has no rule for the fused kernel's
    backward and would loop.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("eager")

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).logits


def token_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the cross entropy over the supervised tokens of one sample. [1, t, v], [1, t] -> []"""
    return F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100)


class Texts(Dataset):
    """Samples that are padded to the longest of the batch they are asked for in, if they are asked for together."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        batch = Collator(0)([self.items[i] for i in indices])
        names = ("input_ids", "labels", "attention_mask")
        return [{name: getattr(batch, name)[row] for name in names} for row in range(len(indices))]


def loader(items: Sequence[Item], size: int, *names: str) -> DataLoader:
    """Give batches as tuples of the named tensors."""

    def collate(group: list[Item]) -> tuple[Tensor, ...]:
        batch = Collator(0)(group)
        return tuple(getattr(batch, name) for name in names)

    return DataLoader(list(items), batch_size=size, collate_fn=collate)  # type: ignore[arg-type]


def dattri_task(job: Job) -> Any:
    """dattri's view of the model: a loss of flat parameters and one sample, to be mapped over samples."""
    from dattri.task import AttributionTask

    model = Logits(job.model)

    def loss(parameters: dict[str, Tensor], sample: tuple[Tensor, ...]) -> Tensor:
        ids, labels = (part.reshape(1, -1) for part in sample)
        return token_mean(torch.func.functional_call(model, parameters, (ids,)), labels)

    return AttributionTask(loss, model, [{}], checkpoints_load_func=lambda model, _: model)


def dattri_tracin(job: Job) -> Scores:
    """TracInAttributor without its random projection."""
    from dattri.algorithm.tracin import TracInAttributor

    attributor = TracInAttributor(dattri_task(job), weight_list=torch.ones(1), normalized_grad=False)
    attributor.projector_kwargs = None  # None in the constructor means 512 dimensions
    pool, targets = (loader(items, job.batch_size, "input_ids", "labels") for items in (job.pool, job.targets))
    return lambda: attributor.attribute(pool, targets).T


def dattri_datainf(job: Job) -> Scores:
    """IFAttributorDataInf, which holds all gradients and transforms the targets anew for every batch."""
    from dattri.algorithm.influence_function import IFAttributorDataInf

    task = dattri_task(job)
    pool, targets = (loader(items, job.batch_size, "input_ids", "labels") for items in (job.pool, job.targets))

    def score() -> Tensor:
        attributor = IFAttributorDataInf(task, regularization=job.damping)
        attributor.cache(pool)
        return attributor.attribute(pool, targets).T.detach()

    return score


def dattri_llm_tracin(job: Job) -> Scores:
    """TracInAttributor on the fly, hooks on the LoRA layers."""
    from dattri_llm import AttributionArguments, AttributionTask, HookManagerConfig, TracInAttributor

    model = PerSample(copy.deepcopy(job.model))
    arguments = AttributionArguments(
        job.folder, job.batch_size, len(job.targets), use_cpu=True, dataloader_pin_memory=False
    )
    task = AttributionTask(lambda model, batch: model(**batch).sum(), model)
    hooks = HookManagerConfig(hook_types={name: "linear_io" for name in lora_layers(model)})

    def score() -> Tensor:
        attributor = TracInAttributor(arguments, task=task)
        return attributor.attribute(Texts(job.pool), Texts(job.targets), hook_config=hooks).agnostic_matrix()[1].T

    return score


def bergson_tracin(job: Job) -> Scores:
    """Target gradients in memory, then the pool scored as it streams; batches by its own packing."""
    from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector, Scorer
    from bergson.data import allocate_batches
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from datasets import Dataset as Table

    model: Any = copy.deepcopy(job.model)
    config = IndexConfig(os.path.join(job.folder, "bergson"), loss_reduction="mean")
    os.makedirs(config.partial_run_path, exist_ok=True)
    names = set(lora_layers(model.base_model))
    pool, targets = (
        Table.from_list([{"input_ids": item.input_ids, "labels": item.labels} for item in items])
        for items in (job.pool, job.targets)
    )

    def collect(table: Any, items: Sequence[Item], scorer: Any = None) -> Any:
        collector = InMemoryCollector(
            model=model.base_model,
            target_modules=names,
            processor=GradientProcessor(),
            data=table,
            cfg=config,
            scorer=scorer,
        )
        groups = allocate_batches([len(item.input_ids) for item in items], config.token_batch_size)
        CollectorComputer(model, table, collector=collector, batches=groups, cfg=config).run_with_collector_hooks()
        return collector

    def score() -> Tensor:
        aims = collect(targets, job.targets).gradients
        writer = InMemorySequenceScoreWriter(len(job.pool), len(job.targets))
        collect(pool, job.pool, Scorer(aims, list(aims), writer, torch.device("cpu"), torch.float32))
        return writer.scores.T

    return score


def kronfluence_tracin(job: Job) -> Scores:
    """Pairwise scores with strategy="identity", whose factors are empty."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task
    from kronfluence.utils.dataset import DataLoaderKwargs

    class Losses(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return sample_losses(model, SimpleNamespace(**batch)).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return lora_layers(job.model)

    model = prepare_model(copy.deepcopy(job.model), Losses())
    analyzer = Analyzer("bench", model, Losses(), cpu=True, disable_tqdm=True, output_dir=job.folder)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs())
    pool, targets = Texts(job.pool), Texts(job.targets)
    analyzer.fit_all_factors("none", pool, factor_args=FactorArguments(strategy="identity"), overwrite_output_dir=True)
    sizes = {"per_device_query_batch_size": len(targets), "per_device_train_batch_size": job.batch_size}

    def score() -> Tensor:
        analyzer.compute_pairwise_scores("scores", "none", targets, pool, overwrite_output_dir=True, **sizes)
        return analyzer.load_pairwise_scores("scores")["all_modules"]

    return score


def captum_tracin(job: Job) -> Scores:
    """TracInCP with sample_wise_grads_per_batch; TracInCPFast sees the last linear layer alone."""
    from captum.influence import TracInCP

    model = PerSample(copy.deepcopy(job.model))
    model.model.enable_input_require_grads()  # its hooks want a graph at every layer's input
    names = ("input_ids", "labels", "attention_mask", "uids")  # the last one is what captum takes for labels
    tracin = TracInCP(
        model,
        loader(job.pool, job.batch_size, *names),
        checkpoints=["this"],
        checkpoints_load_func=lambda model, path: 1.0,
        layers=lora_layers(model),
        loss_fn=lambda losses, _: losses.sum(),
        sample_wise_grads_per_batch=True,
    )
    (targets,) = loader(job.targets, len(job.targets), *names)
    return lambda: tracin.influence(targets)


def pydvl_tracin(job: Job) -> Scores:
    """Inner products of what its gradient provider gives, for it has no influence without curvature."""
    from pydvl.influence.torch.base import TorchBatch, TorchGradientProvider

    model = Logits(job.model)
    chosen = {name: parameter.detach() for name, parameter in lora_parameters(model).items()}
    provider = TorchGradientProvider(model, token_mean, restrict_to=chosen)
    pool, targets = (loader(items, job.batch_size, "input_ids", "labels") for items in (job.pool, job.targets))

    def score() -> Tensor:
        aims = torch.cat([provider.flat_grads(TorchBatch(*batch)) for batch in targets])
        return torch.cat([aims @ provider.flat_grads(TorchBatch(*batch)).T for batch in pool], dim=1)

    return score


def pydvl_datainf(job: Job) -> Scores:
    """InverseHarmonicMeanInfluence, each matrix a block, fitted on one batch of the whole pool.

    Its mean over several batches weighs the first one less when there are several targets, and with one batch it comes
    out divided by their number, which is undone here. Every block runs the model anew.
    """
    from pydvl.influence.torch import InverseHarmonicMeanInfluence

    model = Logits(job.model)
    structure = OrderedDict((name, [name]) for name in lora_parameters(model))
    influence = InverseHarmonicMeanInfluence(model, token_mean, job.damping, structure)
    fit, pool = (loader(job.pool, size, "input_ids", "labels") for size in (len(job.pool), job.batch_size))
    (targets,) = loader(job.targets, len(job.targets), "input_ids", "labels")

    def score() -> Tensor:
        aims = influence.fit(fit).influence_factors(*targets)
        return torch.cat([influence.influences_from_factors(aims, *batch) for batch in pool], dim=1) * len(job.targets)

    return score
