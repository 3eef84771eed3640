"""How a text classifier is fine-tuned: AdamW, linear warm-up, then linear decay to zero, no states in between.

HyperINF's and DataInf's mislabelled-data studies tune so; the loss of a step is the mean of its samples' cross
entropies, as a classifier has one supervised token per sample.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vlmsel.models.classifier import Tune
from vlmsel.training.phases import PhaseSettings

RATES = {"lora": 1e-3, "last-layer": 1e-2}


@dataclass(frozen=True)
class FineTuning:
    """How the classifier is fine-tuned.

    Attributes:
        learning_rate: peak rate of AdamW; 1e-3 for LoRA and 1e-2 for the head alone when left out.
        batch_size: samples per step.
        epochs: passes over the training samples.
        warmup_ratio: part of all steps with a rising rate.
        weight_decay: decoupled decay of all that is trained.
        max_grad_norm: gradients are scaled down to this norm; 0 switches that off.
    """

    learning_rate: float | None = None
    batch_size: int = 32
    epochs: float = 3.0
    warmup_ratio: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        self.phase("lora")  # which checks the numbers

    def phase(self, tune: Tune, seed: int = 0) -> PhaseSettings:
        """Return the settings of a phase that tunes so.

        >>> FineTuning().phase("lora").learning_rate, FineTuning(learning_rate=3e-4).phase("last-layer").learning_rate
        (0.001, 0.0003)
        """
        own = {name: value for name, value in asdict(self).items() if value is not None}
        settings = {"learning_rate": RATES[tune], **own}
        return PhaseSettings(train=tune, schedule="linear", decay_vectors=True, seed=seed, save_every=None, **settings)
