"""The vision-language model: frozen tower -> projector -> language model, LLaVA-style (arXiv 2304.08485).

Patch features of each image are projected into the embedding space and stand where the image's placeholder stood among
the text tokens. The tower runs once per distinct image, the projector once per (sample, image), so that a sample's
gradient never mixes with that of another sample showing the same picture.

A text model is one without eyes: no tower, an empty projector, and batches without images, which run as they do in a
model that sees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlmsel.models.config import LoraSpec, VLMConfig
from vlmsel.models.fingerprints import fingerprint
from vlmsel.models.language import load_language, load_tokenizer, shape_language, unwrap
from vlmsel.models.lora import attach_lora, merge_lora
from vlmsel.models.losses import TokenLosses, token_losses
from vlmsel.models.projector import build_projector
from vlmsel.models.splice import Plan, plan_splice, splice_embeddings, splice_labels
from vlmsel.models.vision import VisionTower, load_vision, shape_vision


class BatchLike(Protocol):
    """What a batch must have; `vlmsel.data.batches.Batch` is one."""

    input_ids: Tensor  # [n, t], -200 where an image stands
    labels: Tensor  # [n, t], -100 where nothing is supervised
    attention_mask: Tensor  # [n, t]
    pixel_values: Tensor | None  # [distinct images, 3, S, S], or their features [distinct images, patches, width]
    image_index: Tensor  # [image rows] -> row of pixel_values
    image_samples: Tensor  # [image rows] -> row of input_ids


class VLM(nn.Module):
    """A vision tower, a projector and a causal language model (with or without LoRA) as one module.

    `vision` is None, and `projector` empty, where the model reads text only.
    `tokenizer` goes with the language model; it is needed to save the model, not to run it.
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
        self.vlm_config = config
        self.vision = vision
        self.projector = projector
        self.language_model: Any = language_model
        self.tokenizer = tokenizer
        self.fingerprints: dict[str, str] = {}

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.language_model.parameters()).device

    @property
    def tower(self) -> VisionTower:
        """The vision tower.

        Raises:
            ValueError: the model has none.
        """
        if self.vision is None:
            raise ValueError("this model reads text only; give it no images, or take a model with a vision tower")
        return self.vision

    def project(self, pixel_values: Tensor, image_index: Tensor) -> Tensor:
        """Map distinct images to the patch embeddings [image rows, patches, d] of every image row.

        `pixel_values` are images [m, 3, S, S], or what the tower made of them earlier, [m, patches, width].

        Raises:
            ValueError: they do not have the tower's shape.
        """
        features = self._given(pixel_values) if pixel_values.dim() == 3 else self.tower(pixel_values)
        weight = next(self.projector.parameters())
        return self.projector(features.to(weight.dtype).index_select(0, image_index))

    def _given(self, features: Tensor) -> Tensor:
        expected = [self.tower.patches, self.tower.width]
        if list(features.shape[1:]) != expected:
            raise ValueError(f"the vision tower gives features [m, {expected}], got {list(features.shape)}")
        return features

    def embed(self, batch: BatchLike, left: bool = False) -> tuple[Plan, Tensor]:
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

    def forward(self, batch: BatchLike) -> TokenLosses:
        """Return the cross entropy of every supervised token; `losses.sample_losses` averages it by sample."""
        plan, embeddings = self.embed(batch)
        labels = splice_labels(plan, batch.labels)
        return token_losses(self.language_model, labels, plan.attention_mask, inputs_embeds=embeddings)

    def attach_lora(self, spec: LoraSpec, seed: int = 0) -> None:
        """Add fresh adapters to a language model that has none.

        Raises:
            ValueError: it has adapters already, or a target names no linear module.
        """
        self.language_model = attach_lora(self.language_model, spec, seed).train(self.training)
        self.vlm_config = replace(self.vlm_config, lora=spec)

    def merge_lora(self) -> None:
        """Add the adapters to the language model's own weights, which from now on are saved with the model."""
        self.language_model = merge_lora(self.language_model)
        self.vlm_config = replace(self.vlm_config, lora=None, language_trained=True)

    def mark_trained(self, projector: bool = False, language: bool = False) -> None:
        """Record in the configuration that the projector or the whole language model was trained."""
        was = self.vlm_config
        self.vlm_config = replace(
            was,
            projector_trained=was.projector_trained or projector,
            language_trained=was.language_trained or language,
        )

    def require_ready(self, name: str = "this model", mend: str = "") -> None:
        """Refuse to go on with a projector that was never trained: its output would be noise. Text models have none.

        `name` is what the user calls the model, `mend` what else there is to do about it.

        Raises:
            ValueError: the projector is untrained.
        """
        if not self.vlm_config.ready:
            raise ValueError(
                f"the projector of {name} was never trained, so that it cannot see; align it first (vlmsel align), or "
                f"give a checkpoint that holds one{mend}"
            )


def build(
    config: VLMConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seed: int = 0
) -> VLM:
    """Build a model from pretrained backbones with a fresh projector and fresh adapters.

    `dtype` is that of the frozen backbones; projector and adapters are float32, which training needs. On device `meta`
    the model has shapes and no weights (nothing is loaded): for counting. `seed` draws the adapters.

    Raises:
        FileNotFoundError, ValueError: a backbone cannot be found or used; the message names it.
    """
    if str(device) == "meta":
        vision = None if config.vision is None else shape_vision(config)
        language, tokenizer = shape_language(config.language), None
    else:
        vision = None if config.vision is None else load_vision(config, dtype)
        language = load_language(config.language, dtype)
        tokenizer = load_tokenizer(config.language)
    return assemble(config, vision, language, tokenizer, seed).to(device)


def assemble(config: VLMConfig, vision: VisionTower | None, language_model: Any, tokenizer: Any, seed: int = 0) -> VLM:
    """Put loaded backbones together: freeze them, attach adapters to the language model, add a fresh projector."""
    language_model.requires_grad_(False).eval()
    embedding = language_model.get_input_embeddings().weight
    source = "meta" if embedding.is_meta else "cpu"
    projector = nn.Sequential()
    if vision is not None:
        projector = build_projector(config.projector, vision.width, embedding.shape[1], config.projector_seed, source)
    eyes = "" if vision is None or embedding.is_meta else fingerprint(vision)  # no eyes make no statement
    prints = {} if embedding.is_meta else {"vision": eyes, "language": fingerprint(language_model)}
    if config.lora is not None:
        language_model = attach_lora(language_model, config.lora, seed)
    model = VLM(config, vision, projector, language_model, tokenizer)
    model.fingerprints = prints
    return model.eval()
