"""What the benchmarks share: a plain causal language model as the passes see one, and batches that are made beforehand.

Benchmarks hold our passes against other ways to run the same model; with the model as it comes from transformers, and
its batches ready, nothing but the passes differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlmsel.data.batches import Batch, Collator, Item
from vlmsel.models.config import LoraSpec
from vlmsel.models.lora import attach_lora
from vlmsel.models.losses import head_rows, sample_means, token_losses
from vlmsel.scoring.curvature import take_in
from vlmsel.scoring.solve import Gathered
from vlmsel.scoring.source import ModelSource


def sample_losses(model: nn.Module, batch: Any) -> Tensor:
    """Return each sample's own loss. [n]"""
    return sample_means(token_losses(model, batch.labels, batch.attention_mask, input_ids=batch.input_ids))


@dataclass(frozen=True)
class PlainText:
    """What the passes ask of a subject, for a causal language model with or without adapters."""

    module: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.module.parameters()).device

    def collate(self, items: Sequence[Item]) -> Batch:
        """Pad items on the right."""
        return Collator(0)(items)

    def losses(self, batch: Batch) -> Tensor:
        """Return each sample's own loss. [n]"""
        return sample_losses(self.module, batch)

    def row_samples(self, batch: Batch) -> dict[str, Tensor]:
        """Say whose the rows of the output head are, one per supervised token."""
        if (found := head_rows(self.module, batch.labels, batch.attention_mask)) is None:
            return {}
        head, rows = found
        return {next(name for name, module in self.module.named_modules() if module is head): rows}


@dataclass(frozen=True)
class Ready:
    """Batches in memory, in the place of a plan that makes them."""

    made: Sequence[Any]
    cut: None = None  # a batch is a group of its own

    @property
    def groups(self) -> list[list[int]]:
        """The samples of each batch."""
        return [batch.uids.tolist() for batch in self.made]

    @property
    def sizes(self) -> list[int]:
        """Samples per batch."""
        return [len(batch.uids) for batch in self.made]

    def batches(self, numbers: Sequence[int] | None = None) -> Iterator[Any]:
        """Give the batches of these numbers, or all."""
        yield from self.made if numbers is None else (self.made[number] for number in numbers)

    def by_group(self, numbers: Sequence[int] | None = None) -> Iterator[Iterator[Any]]:
        """Give them one by one."""
        return (iter([batch]) for batch in self.batches(numbers))


def gather(source: ModelSource, gathered: Gathered) -> None:
    """Let statistics take in all samples of a source: the curvature pass, without what makes it go on after a stop."""
    with source.gradients() as read:
        for found in (found for pieces in read(range(len(source.sizes))) for found in pieces):
            kept, _ = found.clean()
            for (block, _), statistic in gathered.statistics.items():
                take_in(statistic, kept, kept.factors[block])
            del kept, found


def llama(layers: int, width: int, heads: int = 4, words: int = 1000) -> LlamaForCausalLM:
    """Make a random Llama."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=8 * width // 3 // 8 * 8,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=512,
        )
    )


def adapted(model: nn.Module, rank: int, targets: Sequence[str]) -> Any:
    """Freeze a model and add LoRA of twice the rank for its alpha."""
    return attach_lora(model.requires_grad_(False), LoraSpec(rank, 2 * rank, targets=tuple(targets)))
