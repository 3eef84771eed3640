"""A Hugging Face image-text-to-text model with its processor: scored, tuned and evaluated as it is.

Samples are read through the processor (see image_text_reader.py), so that a model sees in training what it sees when it
is asked. A sample's loss is taken where the repository's is: on the answers and the token that ends each. Logits are
computed there alone, where the model's own are its head's.

Adapters are PEFT's and lie in the language model only, so that the tower stays as it is; a model is saved in PEFT's
layout or as the whole that `from_pretrained` opens (see image_text_files.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmsel.data.dataset import Reading, Size
from vlmsel.data.features import FeatureReader
from vlmsel.data.image_text_batches import ImageTextBatch, ImageTextCollator, ImageTextItem
from vlmsel.data.images import Photos
from vlmsel.data.sample import Sample
from vlmsel.gradients.blocks import FROZEN_COPY, in_projector
from vlmsel.gradients.persample import evaluating
from vlmsel.models import image_text_files
from vlmsel.models.config import LoraSpec
from vlmsel.models.cross_attention import own_pictures_only
from vlmsel.models.image_text_reader import ProcessorReader
from vlmsel.models.image_text_rows import RowMaps
from vlmsel.models.language import mean_of_rows, pad_id, positions, set_padding, unwrap
from vlmsel.models.lora import attach_lora, lora_parameters, merge_lora
from vlmsel.models.losses import TokenLosses, supervised
from vlmsel.models.subject import Groups, Subject, only_these_learn


class ImageText(nn.Module, Subject):
    """A transformers model with the processor that handles its images.

    Attributes:
        model: the model, within PEFT's wrapper where it has adapters.
        template: the one of ours that it is trained and asked with, None for its processor's own.
        source: where the model lies without what was trained here.
        refusal: why it can be evaluated only; "" where it can be trained and scored.
    """

    def __init__(self, model: Any, processor: Any, template: str | None = None, source: str = "this model") -> None:
        super().__init__()
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer
        self.template, self.source, self.refusal = template, source, ""
        self.exif = False
        self.projector_trained = self.language_trained = False
        self.card: dict[str, Any] = {}
        set_padding(self.tokenizer)
        own_pictures_only(self.backbone)

    @property
    def module(self) -> nn.Module:
        return self

    @property
    def backbone(self) -> Any:
        return unwrap(self.model)

    @cached_property
    def positions(self) -> int | None:
        return positions(self.model)

    @property
    def adapted(self) -> bool:
        """Whether it has adapters."""
        return hasattr(self.model, "peft_config")

    @cached_property
    def base_weights(self) -> str:
        """The fingerprint of the weights that adapters are for, taken once: they stay frozen."""
        return image_text_files.base_fingerprint(self.model)

    @property
    def base(self) -> Any:
        """What maps tokens and images to hidden states, without the head."""
        return self.backbone.model

    @cached_property
    def reader(self) -> ProcessorReader:
        """What encodes samples.

        Raises:
            ValueError: the processor has no chat template, or is of a kind that cannot be read.
        """
        if self.refusal:
            raise ValueError(self.refusal)
        return ProcessorReader(self.processor, self.template, self.source)

    @property
    def reads_with(self) -> str:
        return self.reader.name

    # What it reads

    def encode(self, sample: Sample, reading: Reading) -> ImageTextItem:
        photos = self.pictures(reading)
        return self.reader.encode(sample, [photos(image) for image in sample.images], reading, self.longest(reading))

    def size(self, sample: Sample, reading: Reading) -> Size:
        photos = self.pictures(reading)
        try:
            sizes = [photos.size(image) for image in sample.images]
        except OSError as problem:
            raise ValueError(str(problem)) from None
        return self.reader.size(sample, sizes, reading, self.longest(reading))

    def pictures(self, reading: Reading) -> Photos:
        return Photos(reading.images or Path(), self.exif)

    def features(
        self, reading: Reading, names: Iterable[str], folder: str | Path, dtype: str | None = None
    ) -> FeatureReader | None:
        """Refuse: these models read pictures of any size, whose features are not kept."""
        raise ValueError(f"{self.source}: a Hugging Face model's image features are not kept; leave --features out")

    def turn_pictures(self, exif: bool | None) -> None:
        self.exif = self.exif if exif is None else exif

    def collate(self, items: Sequence[ImageTextItem]) -> ImageTextBatch:
        return ImageTextCollator(pad_id(self.tokenizer))(items)

    # Its loss

    def states(self, batch: ImageTextBatch) -> Tensor:
        """Return the last hidden states. [n, t, d]"""
        return self.base(**self._inputs(batch)).last_hidden_state

    def _inputs(self, batch: ImageTextBatch) -> dict[str, Any]:
        dtype = self.backbone.dtype
        more = {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.inputs().items()}
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False, **more}

    @cached_property
    def plain_head(self) -> bool:
        """Whether its logits are what its head makes of the hidden states, which is tried on a few tokens."""
        ids = torch.arange(len(self.tokenizer), device=self.device)
        special = torch.tensor(sorted(self.tokenizer.all_special_ids), device=self.device)
        ids = ids[~torch.isin(ids, special)][None, :8]
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with torch.no_grad(), evaluating(self):
            own = self.backbone(**asked).logits
            made = self.backbone.get_output_embeddings()(self.base(**asked).last_hidden_state)
        return own.shape == made.shape and torch.equal(own, made.to(own.dtype))

    def forward(self, batch: ImageTextBatch) -> TokenLosses:
        """Return the cross entropy of every supervised token; `losses` averages it by sample."""
        chosen = supervised(batch.labels, batch.attention_mask)
        if self.plain_head:
            logits = self.backbone.get_output_embeddings()(self.states(batch)[:, :-1][chosen])
        else:
            logits = self.backbone(**self._inputs(batch)).logits[:, :-1][chosen]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(logits, batch.labels[:, 1:][chosen], reduction="none")
        return TokenLosses(losses, chosen.nonzero()[:, 0], len(batch.labels))

    def token_losses(self, batch: ImageTextBatch) -> TokenLosses:
        return self(batch)

    def row_samples(self, batch: ImageTextBatch) -> Mapping[str, Tensor]:
        """Say whose the rows of the vision part, and of the head (one per supervised token), are."""
        owners = dict(self._maps.of(batch))
        if self.plain_head:
            head = self.backbone.get_output_embeddings()
            name = next(name for name, module in self.named_modules() if module is head)
            owners[name] = supervised(batch.labels, batch.attention_mask).nonzero()[:, 0]
        return owners

    @cached_property
    def _maps(self) -> RowMaps:
        return RowMaps(self, self.base, self.backbone.get_decoder())

    def reaches(self, batch: ImageTextBatch, group: str) -> bool:
        return group != "projector" or "pixel_values" in batch.inputs()

    # What it makes of samples

    def hidden(self, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
        return self.states(batch), batch.attention_mask

    def embedding(self, batch: ImageTextBatch) -> list[Tensor]:
        """Return the means of words, and of what stands in images' places, as the language model reads them."""
        embedded = self._embedded(batch).float()
        ids = [i for i in self._image_ids() if i is not None]
        shown = torch.isin(batch.input_ids, torch.tensor(ids, device=batch.input_ids.device))
        real = batch.attention_mask.bool()
        return [mean_of_rows(embedded, real & ~shown), mean_of_rows(embedded, real & shown)]

    def _image_ids(self) -> Sequence[int | None]:
        own = getattr(self.processor, "image_token_id", None)
        return getattr(self.processor, "image_token_ids", None) or [own]

    def _embedded(self, batch: ImageTextBatch) -> Tensor:
        """Return what the language model reads, caught where it begins. [n, t, d]"""

        def catch(module: nn.Module, args: Any, given: dict[str, Any]) -> None:
            raise _Caught(given.get("inputs_embeds"))

        handle = self.backbone.get_decoder().register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.base(**self._inputs(batch))
        except _Caught as caught:
            if caught.tensor is not None:
                return caught.tensor
        finally:
            handle.remove()
        return self.backbone.get_input_embeddings()(batch.input_ids)

    # What of it is looked at, and what learns

    def default_blocks(self) -> str:
        """Return the adapters, or the last block where there are none."""
        return "lora" if lora_parameters(self) else "last-block"

    def attach_lora(self, spec: LoraSpec, seed: int = 0, name: str = "the model") -> None:
        if self.refusal:
            raise ValueError(self.refusal)
        if self.adapted:
            raise ValueError(
                f"{name} has LoRA adapters already; leave --lora out to tune these, or give a model without"
            )
        inside = self.backbone.get_decoder()
        self.model = attach_lora(self.model, spec, seed, task=None, inside=inside).train(self.training).to(self.device)
        self._forget()

    def merge_lora(self) -> None:
        """Add the adapters to the model's own weights, which from now on are saved whole."""
        self.model = merge_lora(self.model)
        self._forget()

    def _forget(self) -> None:
        """Forget what depended on the names of the modules."""
        self.__dict__.pop("_maps", None)

    def trained(self, parts: str) -> Groups:
        """Let projector, adapters (lora) or the whole language model (lm) learn, whose adapters become part of it."""
        if self.refusal:
            raise ValueError(self.refusal)
        if "lm" in parts and self.adapted:
            self.merge_lora()
        groups: Groups = {}
        if "projector" in parts:
            groups["projector"] = {
                name: p
                for name, p in self.named_parameters()
                if in_projector(name) and FROZEN_COPY not in name.split(".")
            }
            if not groups["projector"]:
                raise ValueError(
                    f"train is {parts!r} and {type(self.backbone).__name__} has no projector that is known"
                )
        if "lora" in parts:
            groups["lora"] = {name: p for name, p in self.named_parameters() if ".lora_" in name}
            if not groups["lora"]:
                raise ValueError(f"train is {parts!r} and the model has no LoRA adapters; attach some (--lora.r 16)")
        if "lm" in parts:
            own = {
                id(p)
                for part in (self.backbone.get_decoder(), self.backbone.get_output_embeddings())
                for p in part.parameters()
            }
            groups["language model"] = {name: p for name, p in self.named_parameters() if id(p) in own}
        if not groups:
            raise ValueError(f"train is {parts!r}, which is for classifiers; set settings.train to lora or lm")
        return only_these_learn(self, groups)

    def mark_trained(self, groups: Collection[str]) -> None:
        self.projector_trained = self.projector_trained or "projector" in groups
        self.language_trained = self.language_trained or "language model" in groups

    # What it is

    def note(self, **facts: Any) -> None:
        self.card |= facts

    def reads(self) -> Any:
        """Return how it is asked, what its processor makes of pictures, how it generates, and its adapters' scales."""
        how = self.template, self.processor.chat_template, self.backbone.generation_config.to_dict(), self.exif
        held = (getattr(part, "scaling", None) for part in self.modules())
        scales = [sorted(one.items()) for one in held if isinstance(one, dict)]
        images = sorted((name, repr(value)) for name, value in self.processor.image_processor.to_dict().items())
        return how, images, scales

    def measures(self) -> Any:
        return self.reader.measures, self.positions, self.exif

    def save(self, folder: str | Path) -> None:
        image_text_files.save(self, folder)

    def load_trained(self, folder: str | Path) -> None:
        image_text_files.load_trained(self, folder)


class _Caught(Exception):
    """What a hook caught."""

    def __init__(self, tensor: Tensor | None) -> None:
        super().__init__()
        self.tensor = tensor
