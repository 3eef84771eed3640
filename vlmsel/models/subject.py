"""What is scored, tuned and evaluated, whatever its make: the one interface that nothing above `models/` looks behind.

A subject reads samples (`encode`, `collate`), gives each sample's own loss (`losses`), says which sample the rows of a
module belong to (`row_samples`) and which parameters are looked at (`blocks`), and is saved and told apart by content
(`save`, `digest`). Our vision-language model, text models, classifiers and Hugging Face's models are implementations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmsel.data.dataset import Reading
from vlmsel.data.images import Pictures
from vlmsel.data.sample import Sample
from vlmsel.gradients import Block, select_blocks
from vlmsel.models.losses import TokenLosses, sample_means


class Subject(ABC):
    """A model with its tokenizer, as all that stands above models sees it."""

    tokenizer: Any

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What runs; blocks are named as its parameters are."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return next(self.module.parameters()).device

    # What it reads

    @abstractmethod
    def encode(self, sample: Sample, reading: Reading) -> Any:
        """Encode a sample with its pictures: what `collate` takes, with a `uid`.

        Raises:
            ValueError: the sample cannot be used; says why.
        """

    @abstractmethod
    def length(self, sample: Sample, reading: Reading) -> int:
        """Return the tokens that a sample takes, pictures' places included, without reading pictures.

        Raises:
            ValueError: the sample cannot be used; says why.
        """

    def pictures(self, reading: Reading) -> Pictures | None:
        """Return what reads a sample's pictures; None for a model that reads text only."""
        return None

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Any:
        """Make a batch, with `uids` [n], `input_ids` [n, t], `to(device)` and `halves()`, of encoded samples."""

    # Its loss

    @abstractmethod
    def token_losses(self, batch: Any) -> TokenLosses:
        """Return the loss of every supervised token of a batch and the sample that it belongs to."""

    def losses(self, batch: Any) -> Tensor:
        """Return each sample's own loss, the mean over its supervised tokens, float32 or better. [n]"""
        return sample_means(self.token_losses(batch))

    def row_samples(self, batch: Any) -> Mapping[str, Tensor]:
        """Say, by module name, which sample each row of a module's input belongs to, where rows are not samples."""
        return {}

    # What of it is looked at

    @abstractmethod
    def default_blocks(self) -> str:
        """Return the blocks that are looked at when none are named."""

    def blocks(self, spec: str | None = None) -> list[Block]:
        """Return the blocks that a specification names, or the default ones; see `select_blocks`."""
        return select_blocks(self.module, spec or self.default_blocks())

    # What it is

    @abstractmethod
    def digest(self) -> str:
        """Return a hash that tells this model from any other: its weights, and how it reads samples."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write what was trained, and the names of the rest, into a folder that `open_subject` opens."""

    @abstractmethod
    def load_trained(self, folder: str | Path) -> None:
        """Put the trained parts of a saved model of the same make into this one, in place."""

    def require_ready(self, name: str = "this model", mend: str = "") -> None:
        """Refuse a model that lacks training which everything else builds on; `mend` is what else there is to do.

        Raises:
            ValueError: it is not ready; names it.
        """
        return
