"""What a training phase changes and how: settings, the published presets, and the optimiser's groups of parameters.

AdamW with betas (0.9, 0.999) and eps 1e-8; no weight decay on biases and norms; a cosine schedule with warm-up;
gradients clipped to norm 1, unless the settings say otherwise. The gradient of a step is that of the mean loss over all
supervised tokens of its samples, however they are cut into micro-batches (averaging the micro-batches' means, as is
common, weighs tokens unequally).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vlmsel.models.subject import Groups

Train = Literal["projector", "projector+lora", "lora", "projector+lm", "lm", "last-layer"]


@dataclass(frozen=True)
class PhaseSettings:
    """Hyper-parameters of one phase.

    Attributes:
        train: which parts learn: projector, projector+lora, lora, projector+lm or lm (the whole language model); a
            model that reads text only has no projector. A classifier has lora (and the head) or last-layer.
        learning_rate: peak rate.
        projector_learning_rate: peak rate of the projector, where it is another.
        schedule: how the rate falls to zero after warm-up, cosine or linear.
        weight_decay: decoupled decay of matrices.
        decay_vectors: whether it is one of vectors (biases, norms), too.
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
        moments: leave Adam's second moments in `moments.safetensors`, for `TracIn(moments=FILE)`.
        save_every: steps between the states that an interrupted run goes on from; null for none.
        workers: processes that read samples.
        log_to: where loss and learning rate of every step go as well (`--log_to` for short): tensorboard, in `logs/`
            of the run folder, or wandb; either must be installed.
    """

    train: Train = "projector+lora"
    learning_rate: float = 1e-3
    projector_learning_rate: float | None = None
    schedule: Literal["cosine", "linear"] = "cosine"
    weight_decay: float = 0.0
    decay_vectors: bool = False
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
    moments: bool | None = None  # null is what runs before this option had
    save_every: int | None = 200
    workers: int = 0
    log_to: Literal["tensorboard", "wandb"] | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(PhaseSettings).items():
            allowed = get_args(hint) if get_origin(hint) is Literal else ()
            if allowed and getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in ("learning_rate", "batch_size", "gradient_accumulation", "epochs", "save_every"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1 or left out, got {self.max_steps}")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio must be in [0, 1), got {self.warmup_ratio}")

    def identity(self) -> dict[str, Any]:
        """Return the settings that change the result; a run goes on only with the same ones."""
        return {name: value for name, value in asdict(self).items() if name not in ("save_every", "workers", "log_to")}


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


def require_autocast(dtype: str, settings: PhaseSettings) -> None:
    """Refuse half-precision backbones without autocast: what learns is float32, and the two would not fit together.
    Refuse to log to what is not installed, too.

    Raises:
        ValueError: says which setting to change.
    """
    if dtype == "bfloat16" and settings.precision != "bfloat16":
        raise ValueError(
            "--dtype bfloat16 holds what is frozen in half precision, beside which what learns runs in autocast; set "
            "--settings.precision bfloat16 too"
        )
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"training takes --dtype float32 or bfloat16, got {dtype!r}")
    if settings.log_to is not None and find_spec(settings.log_to) is None:
        raise ValueError(
            f"--log_to {settings.log_to}: the package {settings.log_to} is not installed; install it, or leave it out"
        )


def optimizer_groups(groups: Groups, settings: PhaseSettings) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: two rates, and no decay for vectors (biases, norms) unless asked for."""
    result = []
    for name, group in groups.items():
        special = settings.projector_learning_rate if name == "projector" else None
        rate = settings.learning_rate if special is None else special
        for matrices in (True, False):
            chosen = [p for p in group.values() if (p.dim() > 1) == matrices]
            decay = settings.weight_decay if matrices or settings.decay_vectors else 0.0
            if chosen:
                result.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return result
