"""What is scored, tuned and evaluated, whatever its make: the one interface that nothing above `models/` looks behind.

A subject reads samples (`encode`, `collate`), gives each sample's own loss (`losses`), says which sample the rows of a
module belong to (`row_samples`) and which parameters are looked at (`blocks`) or learn (`trained`), and is saved and
told apart by content (`save`, `digest`). Our vision-language model, text models, classifiers and Hugging Face's models
are implementations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmsel.data.dataset import WHOLE, Reading, Size
from vlmsel.data.features import FeatureReader
from vlmsel.data.images import Opener
from vlmsel.data.sample import Sample
from vlmsel.gradients import Block, select_blocks
from vlmsel.models.config import LoraSpec
from vlmsel.models.fingerprints import model_settings, tokenizer_settings, weights_digest
from vlmsel.models.losses import TokenLosses, sample_means, supervised_counts

Groups = dict[str, dict[str, nn.Parameter]]  # group name -> parameter name -> parameter


class Subject(ABC):
    """A model with its tokenizer, as all that stands above models sees it."""

    tokenizer: Any

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What runs; blocks are named as its parameters are."""

    @property
    @abstractmethod
    def backbone(self) -> Any:
        """The transformers model inside, without the wrapper of adapters."""

    @property
    def positions(self) -> int | None:
        """How many tokens it reads at once, pictures' places included; longer samples are cut. None: nothing says."""
        return None

    def longest(self, reading: Reading) -> int:
        """Return how many tokens of a sample are kept: as asked or as many as it reads; with `WHOLE` all of them."""
        if reading.max_length == WHOLE:
            return WHOLE
        return min(reading.max_length, self.positions or reading.max_length)

    @property
    def reads_with(self) -> str:
        """The name of the template that it reads conversations with; "" where it reads none."""
        return ""

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
    def size(self, sample: Sample, reading: Reading) -> Size:
        """Return the tokens that a sample takes, pictures' places included, without reading pictures.

        Raises:
            ValueError: the sample cannot be used; says why.
        """

    def pictures(self, reading: Reading) -> Opener | None:
        """Return what reads a sample's pictures; None for a model that reads text only."""
        return None

    def features(
        self, reading: Reading, names: Iterable[str], folder: str | Path, dtype: str | None = None
    ) -> FeatureReader | None:
        """Return the features of pictures that are kept in a folder, after computing those it lacks.

        Raises:
            ValueError: the model reads text only, or the folder cannot be used.
        """
        raise ValueError("this model reads text only and has no features of images; leave --features out")

    def turn_pictures(self, exif: bool | None) -> None:
        """Turn pictures as their EXIF orientation says, or not, also when it is saved; None changes nothing.

        Raises:
            ValueError: the model reads text only.
        """
        if exif is not None:
            raise ValueError("this model reads text only; leave --exif out")

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

    def supervised(self, batch: Any) -> Tensor:
        """Return how many tokens of each sample enter its loss. [n]"""
        return supervised_counts(batch.labels, batch.attention_mask)

    def row_samples(self, batch: Any) -> Mapping[str, Tensor]:
        """Say, by module name, which sample each row of a module's input belongs to, where rows are not samples."""
        return {}

    def reaches(self, batch: Any, group: str) -> bool:
        """Tell whether a group of parameters that learn has anything to learn from a batch, as far as is known."""
        rows = self.row_samples(batch)
        return group not in rows or len(rows[group]) > 0

    # What it makes of samples, for scorers without gradients

    def hidden(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the last hidden states of a batch, [n, t, d], and which are of real tokens or patches, [n, t].

        Raises:
            ValueError: the model has none.
        """
        raise ValueError(f"{type(self).__name__}: this model gives no hidden states; take another scorer than Hidden")

    def embedding(self, batch: Any) -> list[Tensor]:
        """Return the mean embedding of each sample's tokens and, of a model that sees, the mean of its pictures'
        features, 0 for one without. [n, d] each

        Raises:
            ValueError: the model has none.
        """
        raise ValueError(f"{type(self).__name__}: this model gives no embeddings; take another scorer than Embedding")

    # What of it is looked at, and what learns

    @abstractmethod
    def default_blocks(self) -> str:
        """Return the blocks that are looked at when none are named."""

    def blocks(self, spec: str | None = None) -> list[Block]:
        """Return the blocks that a specification names, or the default ones; see `select_blocks`."""
        return select_blocks(self.module, spec or self.default_blocks())

    def attach_lora(self, spec: LoraSpec, seed: int = 0, name: str = "the model") -> None:
        """Add fresh adapters, drawn from a seed, to a model that has none; `name` is what the user calls it.

        Raises:
            ValueError: it has adapters already or takes none, or a target names no linear module.
        """
        raise ValueError(f"{name} takes no fresh adapters; leave --lora out")

    @abstractmethod
    def trained(self, parts: str) -> Groups:
        """Let exactly the named parts learn, in float32 or better, and return their parameters by group and name.

        Raises:
            ValueError: the model has no such parts.
        """

    def mark_trained(self, groups: Collection[str]) -> None:
        """Take note of the groups of `trained` that have learnt something; what is saved depends on it."""
        return

    # What it is

    def note(self, **facts: Any) -> None:
        """Take note of what it is trained on, for a model card, where it is saved with one."""
        return

    def reads(self) -> Any:
        """Return the settings, beyond weights and tokenizer, that results depend on."""
        return None

    def measures(self) -> Any:
        """Return all settings that `size` depends on, by which sizes are kept; None: measure at every start."""
        return None

    def digest(self) -> str:
        """Return a hash that tells this model from any other: all its weights, its settings, how it reads samples."""
        about = self.reads(), model_settings(self.backbone), tokenizer_settings(self.tokenizer)
        return weights_digest(self.module.state_dict(), repr(about))

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


def only_these_learn(module: nn.Module, groups: Groups) -> Groups:
    """Let exactly these parameters of a model learn, in float32 (master weights) where they are half precision."""
    module.requires_grad_(False)
    for group in groups.values():
        for parameter in group.values():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return groups


class OnlyEvaluated(Subject):
    """A model that answers and cannot be trained or scored: whatever would do so ends in `refusal`, one line."""

    refusal: str

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(self.refusal)

    encode = size = pictures = features = collate = token_losses = _refuse
    default_blocks = blocks = attach_lora = trained = save = load_trained = _refuse
