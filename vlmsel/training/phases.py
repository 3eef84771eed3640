"""What a training phase changes and how: settings, the published presets, and which parameters train.

AdamW with betas (0.9, 0.999) and eps 1e-8; no weight decay on biases and norms; a cosine schedule with warm-up;
gradients clipped to norm 1. The gradient of a step is that of the mean loss over all supervised tokens of its samples,
however they are cut into micro-batches (averaging the micro-batches' means, as is common, weighs tokens unequally).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from vlmsel.models.language import unwrap
from vlmsel.models.lora import lora_parameters
from vlmsel.models.vlm import VLM

Train = Literal["projector", "projector+lora", "lora", "projector+lm", "lm"]
TRAIN = ("projector", "projector+lora", "lora", "projector+lm", "lm")
PRECISIONS = ("float32", "bfloat16")
Groups = dict[str, dict[str, nn.Parameter]]  # group name -> parameter name -> parameter


@dataclass(frozen=True)
class PhaseSettings:
    """Hyper-parameters of one phase.

    Attributes:
        train: which parts learn: projector, projector+lora, lora, projector+lm or lm (the whole language model); a
            model that reads text only has no projector.
        learning_rate: peak rate.
        projector_learning_rate: peak rate of the projector, where it is another.
        weight_decay: decoupled decay of matrices.
        batch_size: samples per optimiser step, over all devices and micro-batches.
        gradient_accumulation: micro-batches that a step is cut into; changes memory and time, not the result.
        epochs: passes over the data.
        max_steps: optimiser steps, instead of `epochs`.
        warmup_ratio: part of all steps with a rising rate.
        warmup_rounding: how the number of these steps is rounded.
        max_grad_norm: gradients are scaled down to this norm; 0 switches that off.
        seed: draws the order of the samples and dropout.
        precision: float32, or bfloat16 for autocast with float32 master weights.
        gradient_checkpointing: recompute the language model's activations in the backward pass.
        save_every: steps between the states that an interrupted run goes on from.
        workers: processes that read samples.
    """

    train: Train = "projector+lora"
    learning_rate: float = 1e-3
    projector_learning_rate: float | None = None
    weight_decay: float = 0.0
    batch_size: int = 32
    gradient_accumulation: int = 1
    epochs: float = 1.0
    max_steps: int | None = None
    warmup_ratio: float = 0.03
    warmup_rounding: Literal["ceil", "floor"] = "ceil"
    max_grad_norm: float = 1.0
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    save_every: int = 200
    workers: int = 0

    def __post_init__(self) -> None:
        choices = {"train": TRAIN, "precision": PRECISIONS, "warmup_rounding": ("ceil", "floor")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("learning_rate", "batch_size", "gradient_accumulation", "epochs", "save_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1 or left out, got {self.max_steps}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}")

    def identity(self) -> dict[str, Any]:
        """Return the settings that change the result; a run goes on only with the same ones."""
        return {name: value for name, value in asdict(self).items() if name not in ("save_every", "workers")}


_PAPERS = PhaseSettings(precision="bfloat16", gradient_checkpointing=True)
_ALIGN = replace(_PAPERS, train="projector", learning_rate=1e-3, batch_size=256, gradient_accumulation=8)
_TUNE = replace(_PAPERS, train="projector+lm", learning_rate=2e-5, batch_size=128, gradient_accumulation=8)
_HYPERINF = replace(
    _TUNE, train="projector+lora", batch_size=8, gradient_accumulation=2, weight_decay=0.1, warmup_rounding="floor"
)

# Micro-batches have the papers' number of samples per GPU, so that one GPU takes the same steps.
PRESETS: dict[str, PhaseSettings] = {
    "llava15-align": _ALIGN,
    "llava15-tune": _TUNE,
    "llava15-lora": replace(_TUNE, train="projector+lora", learning_rate=2e-4, projector_learning_rate=2e-5),
    "prismatic-align": replace(_ALIGN, gradient_accumulation=16, warmup_rounding="floor"),
    "prismatic-tune": replace(_TUNE, weight_decay=0.1, warmup_rounding="floor"),
    "hyperinf-align": replace(_ALIGN, batch_size=32, gradient_accumulation=1, warmup_rounding="floor"),
    "hyperinf-tune": _HYPERINF,
    "hyperinf-llm-lora": replace(_HYPERINF, train="lora", epochs=5.0),
    "hyperinf-llm-dense": replace(_HYPERINF, train="lm", epochs=3.0),
    "tiny-align": PhaseSettings(train="projector+lora", learning_rate=2e-3, batch_size=32),
    "tiny-tune": PhaseSettings(train="projector+lora", learning_rate=1e-3, batch_size=16, epochs=3.0),
    "tiny-llm": PhaseSettings(train="lora", learning_rate=2e-3, batch_size=16, epochs=5.0),
}


def phase_preset(name: str) -> PhaseSettings:
    """Return the named settings.

    Raises:
        ValueError: no preset has this name; lists the names.
    """
    if name not in PRESETS:
        raise ValueError(f"no phase is called {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def trained_groups(model: VLM, train: str) -> Groups:
    """Return the parameters that a phase trains, by group: projector, lora, language model.

    Raises:
        ValueError: the model has no projector or no adapters to train, or adapters in the way of training the whole
            language model.
    """
    groups: Groups = {}
    if "projector" in train and model.vision is None:
        raise ValueError(f"train is {train!r} and the model reads text only: set settings.train to lora or lm")
    adapters = lora_parameters(model)
    if "projector" in train:
        groups["projector"] = {f"projector.{name}": p for name, p in model.projector.named_parameters()}
    if "lora" in train:
        if not adapters:
            raise ValueError(f"train is {train!r} and the model has no LoRA adapters; attach some (tune --lora.r 64)")
        groups["lora"] = adapters
    if "lm" in train:
        if adapters:
            raise ValueError(f"train is {train!r} and the model has LoRA adapters; merge them first (model.merge_lora)")
        weights = unwrap(model.language_model).named_parameters()
        groups["language model"] = {f"language_model.{name}": p for name, p in weights}
    return groups


def set_trainable(model: VLM, train: str) -> Groups:
    """Let exactly the parts named by `train` learn, in float32 (master weights), and return their parameters."""
    groups = trained_groups(model, train)
    model.requires_grad_(False)
    for group in groups.values():
        for parameter in group.values():
            if parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return groups


def optimizer_groups(groups: Groups, settings: PhaseSettings) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: two rates, and no decay for vectors (biases, norms)."""
    result = []
    for name, group in groups.items():
        special = settings.projector_learning_rate if name == "projector" else None
        rate = settings.learning_rate if special is None else special
        for decay in (True, False):
            chosen = [p for p in group.values() if (p.dim() > 1) == decay]
            if chosen:
                result.append({"params": chosen, "lr": rate, "weight_decay": settings.weight_decay if decay else 0.0})
    return result
