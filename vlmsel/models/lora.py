"""LoRA on the language model and nowhere else, through PEFT.

CLIP names its projections like a language model does (`q_proj`), so adapters attached to a whole vision-language model
land in the vision tower too. Here they are attached to the language model before it becomes part of anything.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import peft
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from vlmsel.models.config import EVERY, LoraSpec

ADAPTER = re.compile(r"\.lora_(A|B|magnitude_vector)\.")


def attach_lora(
    language_model: Any, spec: LoraSpec, seed: int = 0, task: str | None = "CAUSAL_LM", inside: nn.Module | None = None
) -> Any:
    """Wrap a language model with fresh adapters (B = 0, so its outputs stay the same) and freeze everything else.

    A is drawn from `seed`; the global random state is left alone. Adapters are float32 whatever the model's dtype.
    `task` is PEFT's task type; None for a model of any other kind, such as a text classifier. Of a model that sees,
    `inside` is the part that reads text.

    Raises:
        ValueError: the model has adapters already, or a target names no linear module of it.
    """
    if hasattr(language_model, "peft_config"):
        raise ValueError("the language model has LoRA adapters already; merge them first (merge_lora)")
    spec = named(language_model, spec, inside)
    layers = target_layers(inside or language_model, spec)
    config = peft.LoraConfig(
        r=spec.r,
        lora_alpha=spec.alpha,
        use_rslora=spec.rslora,
        use_dora=spec.dora,
        target_modules=list(spec.targets) if inside is None else _within(language_model, inside, spec),
        lora_dropout=spec.dropout,
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in layers.values()),
        task_type=task,
    )
    with torch.random.fork_rng(devices=[]), quiet_peft():
        torch.manual_seed(seed)
        return peft.get_peft_model(language_model, config)


def named(language_model: Any, spec: LoraSpec, inside: nn.Module | None = None) -> LoraSpec:
    """Return a specification whose targets are names: where it says all, those of all linear modules but the head."""
    if spec.targets != EVERY:
        return spec
    head = language_model.get_output_embeddings() if hasattr(language_model, "get_output_embeddings") else None
    found = _linear(inside or language_model)
    return replace(spec, targets=tuple(sorted(_leaves(name for name, module in found.items() if module is not head))))


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def target_layers(language_model: nn.Module, spec: LoraSpec) -> dict[str, nn.Module]:
    """Return the linear modules, by full name, whose last name component is one of the targets."""
    linear = _linear(language_model)
    if absent := [target for target in spec.targets if target not in _leaves(linear)]:
        raise ValueError(f"no linear module is called {', '.join(absent)}; the model has {sorted(_leaves(linear))}")
    return {name: module for name, module in linear.items() if _leaves([name]) & set(spec.targets)}


def _within(model: nn.Module, inside: nn.Module, spec: LoraSpec) -> str:
    """Return the expression that PEFT finds the targets by that lie inside a part of a model."""
    name = next(name for name, module in model.named_modules() if module is inside)
    return rf"{re.escape(name)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, spec.targets))})"


def _leaves(names: Iterable[str]) -> set[str]:
    """Return the last components of modules' names."""
    return {name.rpartition(".")[2] for name in names}


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence PEFT's use of a name that transformers has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def adapted_modules(model: nn.Module) -> list[str]:
    """Return the names of all modules that carry an adapter, in model order."""
    return [name for name, module in model.named_modules() if isinstance(module, peft.tuners.lora.LoraLayer)]


def adapts_all(model: nn.Module, spec: LoraSpec) -> bool:
    """Tell whether the linear modules that a specification's targets name carry adapters, and no others do."""
    adapters = [model.get_submodule(name) for name in adapted_modules(model)]
    owners = _leaves(adapted_modules(model))
    linear = all(isinstance(adapter.base_layer, nn.Linear | Conv1D) for adapter in adapters)
    bare = _leaves(_linear(model))
    return linear and owners == set(spec.targets) and owners.isdisjoint(bare)


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter matrices A and B, and DoRA's magnitudes, by parameter name."""
    return {name: p for name, p in model.named_parameters() if ADAPTER.search(name)}


def merge_lora(language_model: Any) -> Any:
    """Return the language model with s·BA added to its weights and no adapters left.

    The sum is formed in float32 (float64 for a float64 model) and rounded once to the model's dtype.

    Raises:
        ValueError: the model has no adapters.
    """
    if not hasattr(language_model, "peft_config"):
        raise ValueError("the language model has no LoRA adapters to merge")
    dtype = language_model.get_input_embeddings().weight.dtype
    wide = language_model if dtype == torch.float64 else language_model.float()
    return wide.merge_and_unload().to(dtype).requires_grad_(False)
