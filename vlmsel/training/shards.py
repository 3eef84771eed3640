"""Frozen layers in shards (FSDP): a process holds a part of each and gathers the rest while the layer runs.

Sharded are the base weights of the language model's layers, which every batch runs through. What learns or is saved
(adapters, a projector) and what is used elsewhere or not by every batch (embedding, head, vision tower) stays whole in
every process, so that gradients, optimiser, states and files are what they are without shards.

Processes wait for each other in every layer, forward and backward, so that all must run all of them equally often: a
process with nothing to do runs a sample and forgets its gradients (`idle`), and what the first layer reads requires a
gradient, so that a backward reaches all layers whatever learns.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import fsdp

from vlmsel import processes
from vlmsel.gradients.blocks import last_layer
from vlmsel.models.devices import pick_device
from vlmsel.models.subject import Groups, Subject

SAVED = re.compile(r"\.lora_|\.modules_to_save\.")  # what a model with adapters is saved by, whether it learns or not


def require_frozen(train: str) -> None:
    """Refuse a phase in which what would be sharded learns.

    Raises:
        ValueError: says what to do.
    """
    if "lm" in train:
        raise ValueError(
            f"settings.train is {train} and the launcher asks for FSDP, which shards frozen weights here; take "
            "recipes/accelerate/ddp.yaml, or adapters (--lora.r 64 --settings.train lora)"
        )


def shard(subject: Subject, groups: Groups) -> None:
    """Deal the frozen weights of the language model's layers among the processes and move all to this one's device.

    Raises:
        ValueError: this version of torch cannot.
    """
    fully_shard = _fully_shard()
    for once in ("fingerprints", "base_weights"):  # of whole weights, which are taken once
        getattr(subject, once, None)
    name = last_layer(subject.module).rpartition(".")[0]
    decoder = subject.module.get_submodule(name.rpartition(".")[0])
    layers = [layer for layer in subject.module.get_submodule(name).children() if not _skipped(layer)]
    whole = {parameter for group in groups.values() for parameter in group.values()}
    whole |= {parameter for key, parameter in subject.module.named_parameters() if SAVED.search(f".{key}")}
    frozen = {parameter for layer in layers for parameter in layer.parameters()} - whole
    processes.wait()  # until they know each other
    mesh = torch.distributed.init_device_mesh(pick_device("auto").type, (processes.count(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - frozen)
    layers[0].register_forward_pre_hook(_needs_gradient, prepend=True, with_kwargs=True)
    subject.module.to(pick_device("auto"))


def _fully_shard() -> Callable[..., Any]:
    found: Any = getattr(fsdp, "fully_shard", None)
    if found is None or "ignored_params" not in inspect.signature(found).parameters:
        raise ValueError(
            f"FSDP needs torch 2.8 or later, this is {torch.__version__}; update it, or take ddp.yaml of "
            "recipes/accelerate"
        )
    return found


def _skipped(layer: nn.Module) -> bool:
    """Tell whether a layer runs for batches with pictures only, as Llama 3.2 Vision's cross-attention does."""
    return any(name.endswith("cross_attn") for name, _ in layer.named_children())


def _needs_gradient(layer: nn.Module, args: Any, given: dict[str, Any]) -> Any:
    """Forward pre-hook of the first layer."""

    def needing(x: Any) -> Any:
        plain = isinstance(x, Tensor) and x.is_floating_point() and not x.requires_grad
        return x.detach().requires_grad_() if plain else x

    if not torch.is_grad_enabled():
        return None
    if args:
        return (needing(args[0]), *args[1:]), given
    return args, {**given, "hidden_states": needing(given["hidden_states"])}


def idle(parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor]) -> None:
    """Run a loss forward and backward with the other processes; gradients are afterwards what they were."""
    kept = [(parameter, parameter.grad) for parameter in parameters if parameter.requires_grad]
    for parameter, _ in kept:
        parameter.grad = None
    loss().backward()
    for parameter, gradient in kept:
        parameter.grad = gradient
