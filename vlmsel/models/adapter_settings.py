"""PEFT's settings of adapters, and which of them our own description keeps.

An allow-list: what a setting means must be known here for adapters to be taken as our own. Methods, ranks by layer,
trained biases, and initialisations that change the model's own weights (PiSSA, OLoRA, LoftQ, CorDA, EVA) are not.
"""

from __future__ import annotations

from typing import Any

from vlmsel.models.config import LoraSpec

# Settings of PEFT's LoRA that `LoraSpec` has, and those that change nothing of what the adapters are.
SAID = ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "lora_dropout")
FREE = (
    "base_model_name_or_path", "peft_version", "auto_mapping", "inference_mode", "fan_in_fan_out", "megatron_core",
    "qalora_group_size", "runtime_config",
)  # fmt: skip
# Values of other settings that change nothing, beside None, False and nothing at all.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "revision": ("main",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian"),
}


def foreign_setting(content: dict[str, Any]) -> str:
    """Name the first setting that our description of adapters would lose; "" when there is none."""
    for name, value in content.items():
        nothing = value is None or value is False or value in ({}, [])
        if not (nothing or name in (*SAID, *FREE) or value in PLAIN.get(name, ())):
            return f"{name} {value!r}"
    targets = content.get("target_modules")
    return "" if isinstance(targets, list) else f"target_modules {targets!r}"


def spec_of(content: dict[str, Any]) -> LoraSpec:
    """Read PEFT's configuration of adapters as ours."""
    return LoraSpec(
        r=content.get("r", 8),
        alpha=content.get("lora_alpha", 8),
        rslora=bool(content.get("use_rslora")),
        dora=bool(content.get("use_dora")),
        targets=tuple(sorted({str(name).rpartition(".")[2] for name in content["target_modules"]})),
        dropout=content.get("lora_dropout", 0.0),
    )
