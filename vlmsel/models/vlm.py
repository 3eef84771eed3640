"""The vision-language model: frozen tower -> projector -> language model, LLaVA-style (arXiv 2304.08485).

Patch features of each image are projected into the embedding space and stand where the image's placeholder stood among
the text tokens. The tower runs once per distinct image, the projector once per (sample, image), so that a sample's
gradient never mixes with that of another sample showing the same picture.

A text model is one without eyes: no tower, an empty projector, and batches without images, which run as they do in a
model that sees.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmsel.data.batches import Batch, Collator, Item
from vlmsel.data.chat import CHAT, ChatEncoder
from vlmsel.data.dataset import Reading, Size
from vlmsel.data.encoding import Encoded, encode
from vlmsel.data.features import FeatureReader
from vlmsel.data.images import Pictures
from vlmsel.data.sample import Sample
from vlmsel.data.templates import find_template
from vlmsel.models import checkpoint
from vlmsel.models.config import LoraSpec, VLMConfig
from vlmsel.models.features import open_features
from vlmsel.models.fingerprints import fingerprint, tokenizer_settings
from vlmsel.models.language import hidden_states, mean_of_rows, pad_id, positions, unwrap
from vlmsel.models.logits import changes_logits
from vlmsel.models.lora import attach_lora, lora_parameters, merge_lora, named
from vlmsel.models.losses import TokenLosses, head_rows, token_losses
from vlmsel.models.splice import Plan, plan_splice, splice_embeddings, splice_labels
from vlmsel.models.subject import Groups, Subject, only_these_learn
from vlmsel.models.vision import VisionTower


class VLM(nn.Module, Subject):
    """A vision tower, a projector and a causal language model (with or without LoRA) as one module.

    `vision` is None, and `projector` empty, where the model reads text only.
    `tokenizer` goes with the language model; it is needed to read samples and to save the model, not to run it.

    Raises:
        ValueError: there is no template of the configuration's name.
    """

    def __init__(
        self,
        config: VLMConfig,
        vision: VisionTower | None,
        projector: nn.Sequential,
        language_model: nn.Module,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        if config.template != CHAT or vision is not None:
            find_template(config.template)
        self.vlm_config = config
        self.vision = vision
        self.projector = projector
        self.language_model: Any = language_model
        self.tokenizer = tokenizer
        changes_logits(language_model)  # now, before anybody watches its modules

    @property
    def module(self) -> nn.Module:
        return self

    @property
    def backbone(self) -> Any:
        return unwrap(self.language_model)

    @cached_property
    def positions(self) -> int | None:
        return positions(self.language_model)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the backbones that are named and not stored, taken once: they stay frozen."""
        named = {} if self.vision is None else {"vision weights": self.vision.state_dict()}
        if not self.vlm_config.language_trained:
            named["language weights"] = checkpoint.own_weights(self.language_model)
        return {name: fingerprint(state) for name, state in named.items()}

    @property
    def tower(self) -> VisionTower:
        """The vision tower.

        Raises:
            ValueError: the model has none.
        """
        if self.vision is None:
            raise ValueError("this model reads text only; give it no images, or take a model with a vision tower")
        return self.vision

    def encode(self, sample: Sample, reading: Reading) -> Item:
        encoded, pictures = self._ids(sample, reading), self.pictures(reading)
        pixels = tuple(pictures(image) for image in sample.images) if pictures else ()
        return Item(sample.uid, encoded.input_ids, encoded.labels, sample.images, pixels)

    def size(self, sample: Sample, reading: Reading) -> Size:
        encoded = self._ids(sample, reading)
        return Size(encoded.positions(self._image_tokens), encoded.supervised)

    def _ids(self, sample: Sample, reading: Reading) -> Encoded:
        if sample.images and self.vision is None:
            raise ValueError("it has an image and this model reads text only")
        limit = self.longest(reading)
        if self.vlm_config.template == CHAT:
            return self._chat.encode(sample.turns, limit, reading.loss_on)
        return encode(
            sample.turns,
            len(sample.images),
            self.tokenizer,
            self.vlm_config.template,
            max_length=limit,
            image_tokens=self._image_tokens,
            loss_on=reading.loss_on,
        )

    @cached_property
    def _chat(self) -> ChatEncoder:
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise ValueError("the tokenizer has no chat template; name one of ours with --template, such as text")
        return ChatEncoder(self.tokenizer, template)

    @property
    def reads_with(self) -> str:
        """The template, which a model with eyes has as a part of it."""
        template = self.vlm_config.template if self.vision is None else ""
        return "the model's own chat template" if template == CHAT else template

    @property
    def _image_tokens(self) -> int:
        return 1 if self.vision is None else self.vision.patches

    def pictures(self, reading: Reading) -> Pictures | None:
        if self.vision is None:
            return None
        tower, mode, exif = self.vision, self.vlm_config.image_mode, self.vlm_config.exif
        return Pictures(reading.images or Path(), tower.image_size, mode, tower.image_mean, reading.features, exif)

    def features(
        self, reading: Reading, names: Iterable[str], folder: str | Path, dtype: str | None = None
    ) -> FeatureReader | None:
        """Return the tower's features of pictures; None where no folder of pictures is named."""
        if self.vision is None:
            return super().features(reading, names, folder, dtype)
        if reading.images is None:
            return None
        mode, exif = self.vlm_config.image_mode, self.vlm_config.exif
        return open_features(self.vision, mode, reading.images, names, folder, dtype, exif=exif)

    def turn_pictures(self, exif: bool | None) -> None:
        if self.vision is None:
            super().turn_pictures(exif)
        elif exif is not None:
            self.vlm_config = replace(self.vlm_config, exif=exif)

    def collate(self, items: Sequence[Item]) -> Batch:
        return Collator(pad_id(self.tokenizer))(items)

    def project(self, pixel_values: Tensor, image_index: Tensor) -> Tensor:
        """Map distinct images to the patch embeddings [image rows, patches, d] of every image row.

        `pixel_values` are images [m, 3, S, S], or what the tower made of them earlier, [m, patches, width].

        Raises:
            ValueError: they do not have the tower's shape.
        """
        features, weight = self._seen(pixel_values), next(self.projector.parameters())
        return self.projector(features.to(weight.dtype).index_select(0, image_index))

    def _seen(self, pixel_values: Tensor) -> Tensor:
        """Return the tower's features of distinct images. [m, patches, width]"""
        features = pixel_values if pixel_values.dim() == 3 else self.tower(pixel_values)
        expected = [self.tower.patches, self.tower.width]
        if list(features.shape[1:]) != expected:
            raise ValueError(f"the vision tower gives features [m, {expected}], got {list(features.shape)}")
        return features

    def embed(self, batch: Batch, left: bool = False) -> tuple[Plan, Tensor]:
        """Embed a batch with its patches in place: the plan of the places and embeddings [n, length, d].

        Padding goes to the right, or to the left for generation. A batch without images touches neither tower nor
        projector.

        Raises:
            ValueError: a sample has another number of placeholders than of images, or the model reads text only and the
                batch has images.
        """
        patches_each = self.tower.patches if len(batch.image_samples) else 0
        plan = plan_splice(batch.input_ids, batch.attention_mask, batch.image_samples, patches_each, left)
        text = unwrap(self.language_model).get_input_embeddings()(batch.input_ids.clamp(min=0))
        patches = None
        if len(batch.image_samples):
            if batch.pixel_values is None:
                raise ValueError(f"the batch has {len(batch.image_samples)} image rows and no pixel_values")
            patches = self.project(batch.pixel_values, batch.image_index)
        return plan, splice_embeddings(plan, text, patches)

    def forward(self, batch: Batch) -> TokenLosses:
        """Return the cross entropy of every supervised token; `losses` averages it by sample."""
        plan, embeddings = self.embed(batch)
        labels = splice_labels(plan, batch.labels)
        return token_losses(self.language_model, labels, plan.attention_mask, inputs_embeds=embeddings)

    def token_losses(self, batch: Batch) -> TokenLosses:
        return self(batch)

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        plan, embeddings = self.embed(batch)
        return hidden_states(self.language_model, plan.attention_mask, inputs_embeds=embeddings), plan.attention_mask

    def embedding(self, batch: Batch) -> list[Tensor]:
        words = batch.attention_mask.bool() & (batch.input_ids >= 0)  # a placeholder is no token
        embedded = unwrap(self.language_model).get_input_embeddings()(batch.input_ids.clamp(min=0)).float()
        means = [mean_of_rows(embedded, words)]
        if self.vision is not None:
            sums = embedded.new_zeros(len(words), self.vision.width)
            if batch.pixel_values is not None:
                seen = self._seen(batch.pixel_values).float().mean(1).index_select(0, batch.image_index)
                sums.index_add_(0, batch.image_samples, seen)
            counts = torch.bincount(batch.image_samples, minlength=len(words)).clamp_min(1)
            means.append(sums / counts[:, None])
        return means

    def row_samples(self, batch: Batch) -> Mapping[str, Tensor]:
        """Say whose the rows of projector (one per image) and output head (one per supervised token) are."""
        owners = {"projector": batch.image_samples}
        if (found := head_rows(self.language_model, batch.labels, batch.attention_mask)) is not None:
            head, rows = found
            owners[next(name for name, module in self.named_modules() if module is head)] = rows
        return owners

    def default_blocks(self) -> str:
        """Return projector and adapters; for text models the adapters, or the last block where there are none."""
        if self.vision is not None:
            return "projector+lora"
        return "lora" if lora_parameters(self) else "last-block"

    def attach_lora(self, spec: LoraSpec, seed: int = 0, name: str = "the model") -> None:
        if self.vlm_config.lora is not None:
            raise ValueError(
                f"{name} has LoRA adapters already; leave --lora out to tune these, or give a model without"
            )
        spec = named(self.language_model, spec)
        self.language_model = attach_lora(self.language_model, spec, seed).train(self.training).to(self.device)
        self.vlm_config = replace(self.vlm_config, lora=spec)

    def merge_lora(self) -> None:
        """Add the adapters to the language model's own weights, which from now on are saved with the model."""
        self.language_model = merge_lora(self.language_model)
        self.vlm_config = replace(self.vlm_config, lora=None, language_trained=True)

    def trained(self, parts: str) -> Groups:
        """Let projector, adapters (lora) or the whole language model (lm) learn, whose adapters become part of it."""
        if "projector" in parts and self.vision is None:
            raise ValueError(f"train is {parts!r} and the model reads text only: set settings.train to lora or lm")
        if "lm" in parts and self.vlm_config.lora is not None:
            self.merge_lora()
        groups: Groups = {}
        if "projector" in parts:
            groups["projector"] = {f"projector.{name}": p for name, p in self.projector.named_parameters()}
        if "lora" in parts:
            groups["lora"] = lora_parameters(self)
            if not groups["lora"]:
                raise ValueError(f"train is {parts!r} and the model has no LoRA adapters; attach some (--lora.r 16)")
        if "lm" in parts:
            weights = self.language_model.named_parameters()
            groups["language model"] = {f"language_model.{name}": p for name, p in weights}
        if not groups:
            raise ValueError(f"train is {parts!r}, which is for classifiers; set settings.train to lora or lm")
        return only_these_learn(self, groups)

    def mark_trained(self, groups: Collection[str]) -> None:
        was = self.vlm_config
        self.vlm_config = replace(
            was,
            projector_trained=was.projector_trained or "projector" in groups,
            language_trained=was.language_trained or "language model" in groups,
        )

    def reads(self) -> Any:
        """Return how samples are read, and the scale of adapters, which their weights do not tell."""
        config = self.vlm_config
        adapters = config.lora and (config.lora.scale, config.lora.dropout)
        pictures = config.image_mode, config.exif, config.vision_layer
        chat = self._chat.template if config.template == CHAT else None
        return config.template, *pictures, self.positions, adapters, *([chat] if chat else [])

    def measures(self) -> Any:
        seen = None if self.vision is None else self.vision.patches
        template = self.vlm_config.template
        chat = self._chat.template if template == CHAT else None  # which the tokenizer's settings do not have
        return template, chat, self.positions, seen, tokenizer_settings(self.tokenizer)

    def save(self, folder: str | Path) -> None:
        checkpoint.save(self, folder)

    def load_trained(self, folder: str | Path) -> None:
        checkpoint.load_trained(self, folder)

    def require_ready(self, name: str = "this model", mend: str = "") -> None:
        """Refuse to go on with a projector that was never trained: its output would be noise. Text models have none."""
        if not self.vlm_config.ready:
            raise ValueError(
                f"the projector of {name} was never trained, so that it cannot see; align it first (vlmsel align), or "
                f"give a checkpoint that holds one{mend}"
            )
